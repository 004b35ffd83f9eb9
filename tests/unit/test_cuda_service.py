# SPDX-License-Identifier: MIT
"""The CUDA service of a CRIU run, as a real process, and the program that asks it, or cannot."""

import contextlib
import fcntl
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmuxd import run_files
from llmuxd.model import cuda_asking, cuda_standby
from llmuxd.model.gpu import State

from . import cuda_program
from .cuda_program import TOP
from .fake_cuda import FakeCuda
from .guards import children

MODEL = "facebook/opt-125m"
UNIT = r"llmux-model@facebook-opt\x2d125m.service"
DEVICES = ("nvidia.com/gpu=0",)
# Nothing of the whole program is to be had: what is said comes from the service.
NO_WHOLE = 'sys.modules["llmuxd.model.cuda_checkpoint"] = None'

Done = subprocess.CompletedProcess[str]
Call = Callable[..., Done]


@pytest.fixture(autouse=True)
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cgroup of the model's unit, where CRIU runs."""
    cgroup = tmp_path / "cgroup"
    cgroup.write_text(f"12:pids:/x\n1:name=systemd:/x\n0::/system.slice/{UNIT}/runtime\n")
    monkeypatch.setattr(cuda_asking, "CGROUP", str(cgroup))
    (tmp_path / "run").mkdir()
    return cgroup


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the service listens."""
    return Path(run_files.path(MODEL, run_files.CUDA))


def calling(cuda: FakeCuda, program: Path) -> Call:
    cuda.monkeypatch.setenv("LD_LIBRARY_PATH", str(cuda.library.parent))

    def call(*words: str) -> Done:
        return subprocess.run([program, *words], capture_output=True, text=True, timeout=20)

    return call


@pytest.fixture
def whole(cuda: FakeCuda, tmp_path: Path) -> Call:
    """The program outside of any unit."""
    there = "import llmuxd.model.cuda_asking"
    nowhere = "llmuxd.model.cuda_asking.CGROUP = '/dev/null'"
    return calling(cuda, cuda_program.install(tmp_path / "whole", there, nowhere))


@pytest.fixture
def program(unit: Path, tmp_path: Path) -> Path:
    """The program in the model's unit."""
    return cuda_program.install(tmp_path / "both", *_in(unit))


@pytest.fixture
def either(cuda: FakeCuda, program: Path) -> Call:
    """The same, called."""
    return calling(cuda, program)


@pytest.fixture
def asked(cuda: FakeCuda, tmp_path: Path, unit: Path) -> Call:
    """The same, and it can do nothing but ask."""
    return calling(cuda, cuda_program.install(tmp_path / "asking", *_in(unit), NO_WHOLE))


def _in(unit: Path) -> tuple[str, str]:
    return "import llmuxd.model.cuda_asking", f"llmuxd.model.cuda_asking.CGROUP = {str(unit)!r}"


@pytest.fixture
def service(cuda: FakeCuda) -> Iterator[int]:
    """The service of a dump; its process."""
    cuda.monkeypatch.setenv("LD_LIBRARY_PATH", str(cuda.library.parent))
    with standing_by() as pid:
        yield pid


@contextlib.contextmanager
def standing_by(*, initialize: bool = False) -> Iterator[int]:
    before = children()
    with cuda_standby.standing_by(MODEL, DEVICES, initialize=initialize):
        (pid,) = children() - before
        yield pid
    eventually(lambda: pid not in children(), "it is ended, and nothing is left of it")


def eventually(what: Callable[[], object], wanted: str) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end, f"never came true: {wanted}"
        time.sleep(0.01)


def told(done: Done) -> tuple[int, str, str]:
    """All that it said, but for the time that it took."""
    return done.returncode, re.sub(r'"seconds": [0-9.]+', '"seconds"', done.stdout), done.stderr


R, L, C, F = State.RUNNING, State.LOCKED, State.CHECKPOINTED, State.FAILED
UUID = "GPU-eea0d83f-ebcd-ac27-6b3e-bec2a19724e6"


@pytest.mark.parametrize(
    ("words", "states", "fails"),
    [
        ("-h", {}, ""),
        ("--get-restore-tid --pid 12", {12: R}, ""),
        ("--get-restore-tid --pid 12", {}, ""),
        ("--get-restore-tid --pid 12 --timeout 200", {12: R}, "GetRestoreThreadId:12=hang"),
        ("--get-state --pid 12", {12: F}, ""),
        ("--get-state --pid 12,13", {12: C, 13: L}, ""),
        ("--get-state --pid 12,13 --json", {12: C, 13: L}, ""),
        ("--get-state --unit no.service", {}, ""),
        ("--get-state --cgroup /no", {}, ""),
        ("--action lock --pid 12 --timeout 300000", {12: R}, ""),
        ("--action lock --pid 12", {12: R}, "Lock:12=600"),
        ("--action lock --pid 12 --json", {12: R}, "Lock:12=600"),
        ("--action checkpoint --pid 12", {12: L}, ""),
        ("--action checkpoint --pid 12", {12: R}, ""),
        ("--action checkpoint --pid 12 --timeout 200", {12: L}, "Checkpoint:12=hang"),
        ("--action checkpoint --pid 12 --timeout 200 --json", {12: L}, "Checkpoint:12=hang"),
        ("--action restore --pid 12", {12: C}, ""),
        (f"--action restore --pid 12 -d {UUID}={UUID}", {12: C}, ""),
        ("--action restore --pid 12", {12: C}, "Restore:12=2"),
        ("--action unlock --pid 12", {12: L}, ""),
        ("--action suspend --pid 12,13", {12: R, 13: R}, "Checkpoint:13=401"),
        ("--action resume --pid 12,13", {12: C, 13: L}, ""),
        ("--toggle --pid 12,13", {12: R, 13: C}, ""),
        ("--toggle --pid 12", {12: C}, ""),
        ("--toggle", {}, ""),
        ("--toggle=\udcff\u00e9 --pid 12", {}, ""),
        ("--get-state --cgroup \udcff\u00e9", {}, ""),
    ],
)
def test_it_says_and_does_what_the_whole_program_does(
    whole: Call, asked: Call, cuda: FakeCuda, words: str, states: dict[int, State], fails: str
) -> None:
    if fails:
        cuda.fail(fails)

    def all_of(call: Call) -> object:
        (cuda.directory / "log").unlink(missing_ok=True)
        for pid, state in states.items():
            cuda.process(pid, state)
        said = told(call(*words.split(" ")))
        # What has pairs begins with where they are in memory.
        made = [
            (call.name, call.pid, call.pairs, call.argument[8 if call.pairs else 0 :])
            for call in cuda.calls()
        ]
        return said, sorted(made), [cuda.state(pid) for pid in states]

    alone = all_of(whole)
    with standing_by():
        assert all_of(asked) == alone


def test_a_restore_finds_the_driver_initialized(asked: Call, cuda: FakeCuda) -> None:
    with standing_by(initialize=True):
        eventually(lambda: cuda.asked() == ["cuInit"], "it initializes at once")
        for pid in (12, 13):
            cuda.process(pid, State.CHECKPOINTED)
            assert asked("--action", "restore", "--pid", str(pid)).returncode == 0
    assert cuda.asked().count("cuInit") == 1
    assert cuda.steps() == [("Restore", 12), ("Restore", 13)]


def test_a_dump_does_not_initialize_it(asked: Call, cuda: FakeCuda, service: int) -> None:
    cuda.process(12)
    for action in ("lock", "checkpoint"):
        assert asked("--action", action, "--pid", "12").returncode == 0
    assert "cuInit" not in cuda.asked()


def test_what_cannot_be_initialized_is_left_to_the_program(
    whole: Call, either: Call, cuda: FakeCuda, path: Path
) -> None:
    """It may be otherwise for a process that has not tried; else CRIU's log has the same error."""
    cuda.process(12, State.CHECKPOINTED)
    cuda.monkeypatch.setenv("FAKE_CUDA_CODES", "cuInit:0=2")
    alone = whole("--action", "restore", "--pid", "12")
    assert "initialization for the restore of process 12" in alone.stderr
    with standing_by(initialize=True) as pid:
        eventually(lambda: has_ended(pid), "it gives up")
        assert told(either("--action", "restore", "--pid", "12")) == told(alone)
        cuda.monkeypatch.delenv("FAKE_CUDA_CODES")
        assert either("--action", "restore", "--pid", "12").returncode == 0


def has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def test_an_initialization_that_hangs_has_the_limit_of_who_waits_for_it(
    whole: Call, asked: Call, cuda: FakeCuda
) -> None:
    cuda.process(12, State.CHECKPOINTED)
    cuda.monkeypatch.setenv("FAKE_CUDA_CODES", "cuInit:0=hang")
    words = ["--action", "restore", "--pid", "12", "--timeout", "200"]
    alone = told(whole(*words))
    with standing_by(initialize=True):
        assert told(asked(*words)) == alone
        assert asked("--get-restore-tid", "--pid", "12").stdout == "13\n"
    assert alone[0] == 124


def test_two_are_answered_at_once(program: Path, asked: Call, cuda: FakeCuda) -> None:
    """By one process: the library lets none go on before both are under way in there."""
    cuda.monkeypatch.setenv("FAKE_CUDA_MEET", "2")
    for pid in (12, 13):
        cuda.process(pid, State.LOCKED)
    with standing_by():
        one = subprocess.Popen([program, "--action", "checkpoint", "--pid", "12"])
        assert told(asked("--action", "checkpoint", "--pid", "13")) == (0, "", "")
        assert one.wait(20) == 0


def test_a_call_that_hangs_holds_up_nobody(program: Path, asked: Call, cuda: FakeCuda) -> None:
    """Neither who asks, nor the end."""
    cuda.process(12, State.LOCKED)
    cuda.process(13)
    cuda.fail("Checkpoint:12=hang")
    with standing_by():
        hangs = subprocess.Popen([program, "--action", "checkpoint", "--pid", "12"])
        eventually(lambda: ("Checkpoint", 12) in cuda.steps(), "it hangs")
        assert asked("--get-state", "--pid", "13").stdout == "running\n"
        begin = time.monotonic()
    assert time.monotonic() - begin < 10
    hangs.kill()
    hangs.wait()


def test_its_socket_is_for_root_alone_and_goes_with_it(path: Path) -> None:
    with standing_by():
        assert path.is_socket() and path.stat().st_mode & 0o7777 == 0o600
    assert not path.exists()


def test_a_model_without_a_gpu_has_none(path: Path) -> None:
    before = children()
    with cuda_standby.standing_by(MODEL, ()):
        assert children() == before and not path.exists()


def test_where_it_cannot_be_started_all_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, either: Call, cuda: FakeCuda
) -> None:
    cuda.process(12)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    with cuda_standby.standing_by(MODEL, DEVICES):
        assert either("--get-state", "--pid", "12").stdout == "running\n"


def test_without_a_driver_the_program_says_so(
    whole: Call, either: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libcuda.so.1").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    words = ["--get-state", "--pid", "12"]
    with standing_by(initialize=True):
        assert told(either(*words)) == told(whole(*words))
    assert whole(*words).returncode == 3


# Whoever started it.

HELPER = """
import fcntl, os, socket, sys, time
from llmuxd.model import cuda_standby
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[2])
listening.listen()
with cuda_standby.standing_by(sys.argv[3], ("gpu",)):
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        print(children.read(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def helper(tmp_path: Path, cuda: FakeCuda) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has one at hand, and the service's; with all that llmux-model has open."""
    cuda.monkeypatch.setenv("LD_LIBRARY_PATH", str(cuda.library.parent))
    code = f"import sys; sys.path[:0] = {[str(TOP), *sys.path]!r}\n{HELPER}"
    argv = [sys.executable, "-P", "-c", code, str(tmp_path / "lock"), str(tmp_path / "s"), MODEL]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())


def test_it_ends_with_a_helper_that_is_killed(
    helper: tuple[subprocess.Popen[str], int], asked: Call, cuda: FakeCuda
) -> None:
    process, service = helper
    cuda.process(12)
    assert asked("--get-state", "--pid", "12").stdout == "running\n"
    ended = os.pidfd_open(service)
    try:
        process.kill()
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        assert poll.poll(10_000), "it lives on"
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(ended, signal.SIGKILL)
        os.close(ended)


def test_it_inherits_neither_the_lock_nor_the_socket_of_its_helper(
    helper: tuple[subprocess.Popen[str], int], tmp_path: Path, asked: Call, cuda: FakeCuda
) -> None:
    process, service = helper
    cuda.process(12)
    assert asked("--get-state", "--pid", "12").stdout == "running\n"
    links = [link.readlink() for link in Path(f"/proc/{service}/fd").iterdir()]
    named = [str(link) for link in links]
    assert str(tmp_path / "lock") not in named
    assert len([name for name in named if name.startswith("socket:")]) == 1
    # Stopped it would hold on to what it had, had it any of it.
    os.kill(service, signal.SIGSTOP)
    process.kill()
    process.wait()
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with socket.socket(socket.AF_UNIX) as tried, pytest.raises(ConnectionRefusedError):
        tried.connect(str(tmp_path / "s"))
    os.kill(service, signal.SIGKILL)


# No service, and none that is of any use.


def test_what_a_dead_run_left_behind_is_not_asked(either: Call, cuda: FakeCuda, path: Path) -> None:
    cuda.process(12)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
    assert either("--get-state", "--pid", "12").stdout == "running\n"
    with standing_by():
        assert path.is_socket()
    path.touch()
    run_files.forget(MODEL)
    assert not path.exists(), "the unit is down"


def test_one_of_another_release_is_not_asked(
    cuda: FakeCuda, tmp_path: Path, unit: Path, service: int
) -> None:
    cuda.process(12)
    other = "llmuxd.model.cuda_asking.__version__ = '0'"
    for name, *lines in (("with", other), ("without", other, NO_WHOLE)):
        program = cuda_program.install(tmp_path / name, *_in(unit), *lines)
        said = calling(cuda, program)("--get-state", "--pid", "12")
        assert said.stdout == ("running\n" if name == "with" else "")


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"?0 0 0\n",
        b"+",
        b"+0 8 0\nrunning",
        b"+0 8 0\nrunning\n\n",
        b"+x 0 0\n",
        b"+0 0\n",
        b"+\n",
    ],
)
def test_what_makes_no_sense_is_no_answer(
    either: Call, cuda: FakeCuda, path: Path, says: bytes
) -> None:
    cuda.process(12)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def answer() -> None:
            asking, _ = listening.accept()
            with asking:
                cuda_asking.receive(asking)
                asking.sendall(says)

        answering = threading.Thread(target=answer)
        answering.start()
        said = either("--get-state", "--pid", "12")
        answering.join()
    assert told(said) == (0, "running\n", "")


def test_one_that_does_not_hear_is_waited_for_no_longer_than_that(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.setattr(cuda_asking, "HEAR_LIMIT", 0.1)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        begin = time.monotonic()
        assert cuda_asking.ask(["cuda-checkpoint", "-h"]) is None
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("cgroup", "is_asked"),
    [
        (f"0::/system.slice/{UNIT}\n", True),
        (f"0::/machine/a.scope/system.slice/system-llmux.slice/{UNIT}/libpod-payload-1\n", True),
        (f"1:name=systemd:/system.slice/{UNIT}\n0::/user.slice\n", False),
        ("0::/system.slice/llmux-model@other.service\n", False),
        ("0::/system.slice/llmux-model@.service\n", False),
        ("0::/user.slice/session-1.scope\n", False),
        ("nonsense\n", False),
        ("", False),
    ],
)
def test_the_model_is_that_of_its_cgroup(
    unit: Path, service: int, cgroup: str, is_asked: bool
) -> None:
    unit.write_text(cgroup)
    said = cuda_asking.ask(["/x/cuda-checkpoint", "--toggle"])
    assert said == ((2, "", said[2]) if is_asked and said else None)
    assert not said or said[2].startswith("cuda-checkpoint: give processes by one of")


def test_outside_of_a_unit_nobody_is_asked(unit: Path, service: int) -> None:
    unit.unlink()
    assert cuda_asking.ask(["cuda-checkpoint", "-h"]) is None
