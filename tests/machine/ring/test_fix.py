# SPDX-License-Identifier: MIT
"""llmuxctl check --fix, which shows each change before it makes it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from subprocess import run

import pytest

from llmuxd.ctl.checks.criu import NEEDED
from llmuxd.ctl.checks.criu_conf import CRUN

from .guest import OPT, complete, configure, counter, sh

SYSCTL = Path("/etc/sysctl.d/llmux.conf")
NAME = "kernel.io_uring_disabled"
FILE = Path("/proc/sys", NAME.replace(".", "/"))
CRUN_CONF = Path(CRUN)
UNCONFINED = "--security-opt=seccomp=unconfined"


class Disguise:
    """A host with a GPU, by mounts that one command sees.

    The kernel is the host's own, and must not be changed.
    """

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


@pytest.fixture
def crun_conf() -> Iterator[Path]:
    before = CRUN_CONF.read_text(encoding="ascii")
    yield CRUN_CONF
    CRUN_CONF.write_text(before, encoding="ascii")


def check(*options: str, said: str = "") -> tuple[dict[str, str], str]:
    """llmuxctl's line about CRIU's options, and what it showed before."""
    argv = ["llmuxctl", "check", "--json", *options]
    done = run(argv, input=said, capture_output=True, text=True, check=False)
    lines = {each["name"]: each for each in json.loads(done.stdout)}
    return lines["crun.conf"], done.stderr


def test_what_crun_conf_lacks_is_shown_and_then_added(crun_conf: Path) -> None:
    """And a model can be checkpointed with what comes of it."""
    configure({OPT: {"args": ["--model", OPT]}})
    options = crun_conf.read_text(encoding="ascii").splitlines()
    mine = [option for option in options if option.split("=")[0] not in NEEDED]
    crun_conf.write_text("# mine\n" + "\n".join(mine), encoding="ascii")
    short = crun_conf.read_text(encoding="ascii")
    line, shown = check()
    assert line["status"] == "fail" and "lacks" in line["text"] and shown == ""
    line, shown = check("--fix", said="n\n")
    assert shown.index(f"add to {crun_conf}:") < shown.index("do this? [y/N]")
    assert all(f"    {name}" in shown for name in NEEDED)
    assert (line["status"], crun_conf.read_text(encoding="ascii")) == ("fail", short)
    line, shown = check("--fix", said="y\n")
    assert line["status"] == "ok" and f"add to {crun_conf}:" in shown
    now = crun_conf.read_text(encoding="ascii")
    assert now.startswith(f"{short}\n") and set(options) <= set(now.splitlines())
    text = complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    assert (complete(OPT).text, counter(OPT)) == (text, 2)


def test_a_directory_that_crun_conf_names_is_shown_and_then_made(
    crun_conf: Path, tmp_path: Path
) -> None:
    configure({OPT: {"args": ["--model", OPT]}})
    libdir = tmp_path / "lib" / "criu"
    text = crun_conf.read_text(encoding="ascii")
    crun_conf.write_text(re.sub("libdir=.*", f"libdir={libdir}", text), encoding="ascii")
    line, shown = check("--fix", said="n\n")
    assert line["status"] == "fail" and f"mkdir -p {libdir}\ndo this? [y/N]" in shown
    assert not libdir.parent.exists()
    line, shown = check("--fix", "--yes")
    assert line["status"] == "ok" and f"mkdir -p {libdir}" in shown and libdir.is_dir()
