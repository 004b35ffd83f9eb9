# SPDX-License-Identifier: MIT
"""llmuxctl check --fix on a machine that takes itself for a host with a GPU."""

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import run

import pytest

from .guest import OPT, configure

SYSCTL = Path("/etc/sysctl.d/llmux.conf")
NAME = "kernel.io_uring_disabled"
FILE = Path("/proc/sys", NAME.replace(".", "/"))
UNCONFINED = "--security-opt=seccomp=unconfined"


class Disguise:
    """Mounts that one command sees. The kernel is the host's own, and must not be changed."""

    def __init__(self, directory: Path) -> None:
        self.value = directory / "value"
        self._gpu = directory / "pci" / "0000:01:00.0"
        self._gpu.mkdir(parents=True)
        (self._gpu / "vendor").write_text("0x10de\n", encoding="ascii")
        (self._gpu / "class").write_text("0x030200\n", encoding="ascii")

    def check(self, *options: str, said: str = "") -> tuple[dict[str, str], str]:
        """llmuxctl's line about io_uring, and what it showed before."""
        script = (
            f"mount --bind {self.value} {FILE} &&"
            f" mount --bind {self._gpu.parent} /sys/bus/pci/devices &&"
            ' exec llmuxctl check --json "$@"'
        )
        argv = ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh", *options]
        done = run(argv, input=said, capture_output=True, text=True, check=False)
        lines = {each["name"]: each for each in json.loads(done.stdout)}
        return lines["io_uring"], done.stderr


@pytest.fixture
def disguise(tmp_path: Path) -> Iterator[Disguise]:
    disguise = Disguise(tmp_path)
    before = FILE.read_text(encoding="ascii")
    disguise.value.write_text("0\n", encoding="ascii")
    try:
        yield disguise
    finally:
        SYSCTL.unlink(missing_ok=True)
        assert FILE.read_text(encoding="ascii") == before


def test_io_uring_is_refused_where_a_container_may_use_it(disguise: Disguise) -> None:
    configure({OPT: {"args": ["--model", OPT], "podman_args": [UNCONFINED]}})
    line, shown = disguise.check()
    assert line["status"] == "warn" and line["text"].startswith(f"{OPT} may use it")
    assert shown == "" and not SYSCTL.exists()
    _, shown = disguise.check("--fix", said="n\n")
    assert f"add to {SYSCTL}:" in shown and f"sysctl -w {NAME}=2" in shown
    assert not SYSCTL.exists() and disguise.value.read_text(encoding="ascii") == "0\n"
    line, _ = disguise.check("--fix", "--yes")
    assert line["status"] == "ok"
    assert disguise.value.read_text(encoding="ascii").strip() == "2"
    lines = SYSCTL.read_text(encoding="ascii").splitlines()
    assert [each for each in lines if not each.startswith("#")] == [f"{NAME}=2"]
    _, shown = disguise.check("--fix", "--yes")
    assert SYSCTL.name not in shown and SYSCTL.read_text().splitlines() == lines


def test_nothing_is_to_be_done_where_seccomp_refuses_it(disguise: Disguise) -> None:
    configure({OPT: {"args": ["--model", OPT]}})
    line, shown = disguise.check("--fix", "--yes")
    assert line["status"] == "ok" and "seccomp" in line["text"]
    assert not SYSCTL.exists() and SYSCTL.name not in shown
