# SPDX-License-Identifier: MIT
"""The CUDA service, beside podman and CRIU in a model's unit: what CRIU calls is answered by it.

The driver is a stand-in that only the unit's own programs find: podman hands LD_LIBRARY_PATH on to
nobody, so that the whole program, called by CRIU, would say that there is none.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmuxd import names

from ..libraries import CUDA
from .guest import OPT, complete, configure, counter, eventually, journal, sh, stop_everything, unit

DEVICE = Path("/dev/nvidia-test")
CRIU = Path("/usr/local/sbin/criu")
DROP_IN = Path("/run/systemd/system/llmux-model@.service.d/cuda.conf")
FAKE = Path("/run/llmux-cuda")
SAID = Path("/run/llmux-cuda-said")
SOCKET = Path(f"/run/llmux/{names.slug(OPT)}.cuda")
PID = 4242
ROUNDS = 20


@pytest.fixture
def host() -> Iterator[None]:
    """It has a GPU, as far as the unit goes, and a CRIU with a plugin that asks."""
    sh("mknod", str(DEVICE), "c", "1", "3")
    FAKE.mkdir()
    (FAKE / str(PID)).write_text("1", encoding="ascii")
    DROP_IN.parent.mkdir(exist_ok=True)
    environment = f"LD_LIBRARY_PATH={CUDA.there.parent} FAKE_CUDA={FAKE}"
    DROP_IN.write_text(f"[Service]\nEnvironment={environment}\n", encoding="ascii")
    sh("systemctl", "daemon-reload")
    CRIU.write_text(
        f"""#!/bin/sh
[ "$1" = swrk ] && cuda-checkpoint --get-state --pid {PID} >> {SAID} 2>&1
exec /usr/sbin/criu "$@"
""",
        encoding="ascii",
    )
    CRIU.chmod(0o755)
    settings = {"devices": [str(DEVICE)], "snapshot": "pristine"}
    configure({OPT: {"args": ["--model", OPT], **settings}})
    yield
    stop_everything()
    CRIU.unlink()
    DROP_IN.unlink()
    DROP_IN.parent.rmdir()
    sh("systemctl", "daemon-reload")
    for path in (*FAKE.iterdir(), SAID):
        path.unlink(missing_ok=True)
    FAKE.rmdir()
    DEVICE.unlink()


def _in_the_unit() -> list[str]:
    """The command lines of its processes."""
    directory = Path("/sys/fs/cgroup" + unit(OPT, "ControlGroup"))
    found = []
    for procs in directory.rglob("cgroup.procs"):
        for pid in procs.read_text(encoding="ascii").split():
            found.append(Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8"))
    return found


def _answers() -> list[str]:
    """What CRIU was told, which is always the same."""
    lines = SAID.read_text(encoding="ascii").splitlines()
    assert set(lines) == {"locked"}
    return lines


def _calls() -> list[str]:
    path = FAKE / "log"
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return [line.split()[0] for line in lines]


def test_what_criu_asks_is_answered_by_the_service(host: None) -> None:
    """As often as it is restored; and nothing of the service stays."""
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    # crun runs CRIU several times, to see what it can do.
    asked = len(_answers())
    # A dump has no use for what only a restore needs.
    assert asked and set(_calls()) == {"cuCheckpointProcessGetState"}
    assert not SOCKET.exists()
    for done in range(ROUNDS):
        assert complete(OPT).text
        assert counter(OPT) == 2, "it is not the image of the first dump"
        before, asked = asked, len(_answers())
        assert asked > before, "it was restored without CRIU"
        assert _calls().count("cuInit") == 1 + done
        assert not SOCKET.exists()
        eventually(
            lambda: not [line for line in _in_the_unit() if "cuda_service" in line],
            "the service has ended",
        )
        sh("llmuxctl", "checkpoint", OPT)
    said = journal(names.unit(OPT))
    assert said.count("cold start: ") == 1 and "the restore failed" not in said
