# SPDX-License-Identifier: MIT
"""Which cuda-checkpoint CRIU's plugin finds: it is called from a model's unit, through podman."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .guest import OPT, complete, fails, sh, two_fakes

OURS = Path("/usr/libexec/llmux/bin/cuda-checkpoint")
THEIRS = Path("/usr/local/bin/cuda-checkpoint")
CRIU = Path("/usr/local/sbin/criu")
FOUND = Path("/run/found-cuda-checkpoint")
DROP_IN = Path("/run/systemd/system/llmux-model@.service.d/path.conf")


@pytest.fixture
def criu() -> Iterator[None]:
    """It notes what would be found by its PATH."""
    CRIU.write_text(
        f"""#!/bin/sh
[ "$1" = swrk ] && command -v cuda-checkpoint >> {FOUND}
exec /usr/sbin/criu "$@"
"""
    )
    CRIU.chmod(0o755)
    yield
    CRIU.unlink()
    FOUND.unlink(missing_ok=True)


@pytest.fixture
def theirs() -> Iterator[None]:
    """NVIDIA's is installed."""
    THEIRS.write_text("#!/bin/sh\n", encoding="ascii")
    THEIRS.chmod(0o755)
    yield
    THEIRS.unlink()


@pytest.fixture
def ours_first() -> Iterator[None]:
    """An operator wants ours."""
    DROP_IN.parent.mkdir(exist_ok=True)
    text = f"[Service]\nEnvironment=PATH={OURS.parent}:/usr/local/sbin:/usr/sbin:/usr/bin\n"
    DROP_IN.write_text(text, encoding="ascii")
    sh("systemctl", "daemon-reload")
    yield
    DROP_IN.unlink()
    DROP_IN.parent.rmdir()
    sh("systemctl", "daemon-reload")


def _found() -> set[str]:
    """By a dump and by a restore."""
    two_fakes()
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    assert complete(OPT).text
    lines = FOUND.read_text(encoding="ascii").splitlines()
    assert len(lines) >= 2
    return set(lines)


def test_ours_where_there_is_no_other(criu: None) -> None:
    assert _found() == {str(OURS)}


def test_nvidias_where_it_is_installed(theirs: None, criu: None) -> None:
    assert _found() == {str(THEIRS)}


def test_ours_where_it_is_put_first(theirs: None, ours_first: None, criu: None) -> None:
    assert _found() == {str(OURS)}


def test_without_a_driver_it_says_so_by_its_own_status() -> None:
    status, said = fails(str(OURS), "--get-state", "--pid", "1")
    assert status == 3 and said.startswith("cuda-checkpoint: no NVIDIA driver: libcuda.so.1")
