# SPDX-License-Identifier: MIT
"""Every command of the README and of the manual pages, as it stands there."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmuxd import names
from tests.documented import Command, pages, readme

from ..libraries import CUDA
from .guest import OPT, complete, eventually, sh, stream, two_fakes
from .sshd import a_sshd

# What has to be true before a command makes sense, by what it says.
BEFORE = (
    (r"\b[Pp]ark\b|\b[Cc]heckpoint\b", "llmuxctl switch qwen"),
    (r"^systemctl (status|reload|stop) .*UNIT", 'systemctl start "$UNIT"'),
    (r"^systemctl status llmuxd", "systemctl start llmuxd.socket llmuxd.service"),
)
# These go on until they are ended: that they still run after a while is what is wanted.
ENDLESS = ("busctl monitor", "llmuxctl top")
# `NAME` and `/Job/3` are to be replaced by the reader, too.
JOB = re.compile(r"/Job/3|(?<=llmuxctl cancel )3")
DRIVER = "llmux-cuda-checkpoint "


def shell(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", text], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=100, check=False,
    )  # fmt: skip


def idle() -> bool:
    """Whether no job runs; so too where llmuxd itself does not."""
    call = ("busctl", "--auto-start=no", "call", "org.llmux", "/Manager", "org.llmux.Manager")
    return "/Job/" not in sh(*call, "ListJobs", check=False)


def run(command: Command) -> str:
    """What it said against it; empty where all is well."""
    variables = "\n".join(command.before)
    text = command.text.replace('"NAME"', OPT)
    for pattern, before in BEFORE:
        if re.search(pattern, text):
            shell(f"{variables}\n{before}")
    if text.startswith(ENDLESS):
        text = f"script -qec 'timeout -s INT 2 {text.replace(chr(39), chr(34))}' /dev/null"
        done = shell(text)
        bad = done.returncode not in (0, 124, 130)
    else:
        done = shell(f"{variables}\n{text}")
        bad = done.returncode != 0
    eventually(idle, "its job has ended")
    # On standard output is what is logged, the servers' own affairs among it.
    wrong = bad or "Traceback" in done.stderr
    return f"{command.text}: {done.returncode} {done.stdout[-300:]}{done.stderr}" if wrong else ""


def without_a_job(commands: list[Command]) -> Iterator[Command]:
    return (
        each
        for each in commands
        if not (each.elsewhere or JOB.search(each.text) or each.text.startswith(DRIVER))
    )


@pytest.fixture(autouse=True)
def _models() -> None:
    two_fakes()
    assert complete(OPT).text


def test_the_readmes_commands_work() -> None:
    wrong = [said for command in without_a_job(readme()) if (said := run(command))]
    assert not wrong, "\n".join(wrong)


def test_the_pages_commands_work() -> None:
    with a_sshd():
        wrong = []
        for command in without_a_job(pages()):
            if "systemctl" not in command.text:
                shell("systemctl start llmuxd.socket llmuxd.service")
            wrong += [said] if (said := run(command)) else []
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("text", [each.text for each in readme() if JOB.search(each.text)])
def test_commands_for_a_job_work(text: str) -> None:
    """With one that waits: for a stream to end."""
    with stream(OPT, 40, seconds_per_token=0.05) as tokens:
        next(tokens)
        call = ("busctl", "call", "org.llmux", "/Manager", "org.llmux.Manager")
        path = sh(*call, "Checkpoint", "s", OPT).split('"')[1]
        done = shell(JOB.sub(path if "/Job/" in text else path.rpartition("/")[2], text))
        assert done.returncode == 0, done.stdout + done.stderr
        if "ancel" in text:
            assert path not in sh(*call, "ListJobs")
        assert list(tokens)[-1] == "[DONE]"


def test_commands_for_the_driver_work(tmp_path: Path) -> None:
    """By a stand-in for libcuda, to which the model's processes and two others use CUDA."""
    assert CUDA.there.stat().st_size, "the host that booted this machine has no C compiler"
    unit = sh("systemctl", "show", "-P", "ControlGroup", names.unit(OPT))
    groups = Path(f"/sys/fs/cgroup{unit}").rglob("cgroup.procs")
    pids = [pid for group in groups for pid in group.read_text(encoding="ascii").split()]
    for pid in [*pids, "4711", "4712"]:
        (tmp_path / pid).write_text("0", encoding="ascii")
    commands = [each for each in (*pages(), *readme()) if each.text.startswith(DRIVER)]
    assert len(commands) >= 8
    for command in commands:
        text = command.text.replace("GPU-OLD", f"GPU-{'0' * 32}").replace("GPU-NEW", "1" * 32)
        variables = [
            *command.before,
            f"UNIT={shlex.quote(names.unit(OPT))}",
            f"export LD_LIBRARY_PATH={CUDA.there.parent} FAKE_CUDA={tmp_path}",
        ]
        done = shell("\n".join([*variables, text]))
        assert done.returncode == 0 and not done.stderr, f"{text}: {done.stdout}{done.stderr}"
    called = (tmp_path / "log").read_text(encoding="ascii")
    assert {"Lock", "Checkpoint", "Restore", "Unlock"} <= {
        line.split()[0].removeprefix("cuCheckpointProcess") for line in called.splitlines()
    }


def test_another_host_is_switched_over_ssh() -> None:
    with a_sshd():
        told = sh("llmuxctl", "-H", "root@localhost", "switch", "qwen")
        assert told.startswith("qwen: switch done in ")
        assert "serving" in sh("llmuxctl", "--host", "localhost", "show", "qwen")
        assert "Model" in sh("llmuxctl", "-H", "localhost", "logs", "qwen")
