# SPDX-License-Identifier: MIT
"""The helper that stays in a model's unit, as a real process, and llmuxd asking it."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmuxd import __version__, files, helper, run_files
from llmuxd.errors import UnitRefused
from llmuxd.model import dot_control, handing
from llmuxd.model.activation import mark_kept, socket_path, stopping_mark, take_park_order
from llmuxd.units import Units

SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from llmuxd import __version__
from llmuxd.model import cgroup, resident
def act(verb):
    with Path(sys.argv[2]).open("a") as log:
        log.write(f"{verb} {os.getpid()}\\n")
    kills = Path(sys.argv[2]).with_name("kills")
    if kills.exists():
        os.kill(int(kills.read_text()), 9)
    if verb == "wake":
        raise ValueError("a bug")
    if verb.startswith("stop"):
        if Path(sys.argv[2]).with_name("bug").exists():
            os.kill(os.getpid(), 9)
        hung = Path(sys.argv[2]).with_name("hung")
        if hung.exists():
            unit = [os.getpid(), os.getppid(), *map(int, hung.read_text().split())]
            cgroup.own_unit, cgroup.processes = lambda: Path("/"), lambda _: unit
            os.kill = lambda pid, _: act(f"kill {pid}")
            cgroup.kill_others()
        # It ends after podman has said that it does.
        subprocess.Popen(["sh", "-c", f"sleep 0.2; kill {sys.argv[1]}"])
    return "done" if verb in ("park", "park 2", f"stop {__version__}") else "failed: no"
fork = os.fork
def limited():
    if Path(sys.argv[2]).with_name("full").exists():
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = limited
def bound():
    server = Path("/proc", sys.argv[3], "stat")
    # A zombie is in no cgroup.
    alive = server.read_text().rpartition(")")[2].split()[0] != "Z"
    return [int(sys.argv[3])] if alive and Path(sys.argv[2]).with_name("bound").exists() else []
watched = resident.Watched(int(sys.argv[1]), bound, lambda: act("broken"))
resident.stay("a", resident.listen("a"), watched, act)
"""


class Reloads(Units):
    """What a unit's reload finds."""

    def __init__(self) -> None:
        super().__init__()
        self.parks: list[bool] = []

    async def reload(self, name: str) -> str:
        self.parks.append(take_park_order(name) is not None)
        return "done"


class Stayed:
    """A resident helper, the process that it watches, and what it did."""

    def __init__(self) -> None:
        files.runtime_root().mkdir(parents=True, exist_ok=True)
        self.log = files.runtime_root() / "log"
        self.conmon = subprocess.Popen([sys.executable, "-S", "-c", "input()"],
                                       stdin=subprocess.PIPE)  # fmt: skip
        self.server = subprocess.Popen(["sleep", "60"])
        processes = self.conmon.pid, self.log, self.server.pid
        argv = [sys.executable, "-c", SCRIPT, *map(str, processes)]
        self.process = subprocess.Popen(argv)

    async def listens(self) -> None:
        """Its socket can be connected to."""
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_unix_connection(socket_path("a"))
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(0.01)

    async def does(self, verb: str) -> None:
        """It has done that."""
        while True:
            if verb in dict(self.did()):
                return
            await asyncio.sleep(0.01)

    async def open(self) -> int:
        """How many descriptors it has while it waits to be asked."""
        # Who asks nothing hears no more than that it is done with all who asked before.
        reader, writer = await asyncio.open_unix_connection(socket_path("a"))
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def did(self) -> list[tuple[str, int]]:
        """Each verb, and the process that carried it out."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(verb, int(pid)) for verb, pid in (line.rsplit(maxsplit=1) for line in lines)]


@pytest.fixture
def stayed() -> Iterator[Stayed]:
    """It ends with what it watches."""
    stayed = Stayed()
    yield stayed
    stayed.server.kill()
    stayed.server.wait()
    stayed.conmon.communicate(b"\n")
    assert stayed.process.wait(10) == 0
    assert not socket_path("a").exists()


async def test_each_verb_is_done_by_a_process_of_its_own(stayed: Stayed) -> None:
    await stayed.listens()
    units = Reloads()
    await helper.park(units, "a")
    await helper.park(units, "a")
    assert units.parks == []
    parks = [pid for verb, pid in stayed.did() if verb == "park"]
    assert len(set(parks)) == 2 and stayed.process.pid not in parks
    assert socket_path("a").stat().st_mode & 0o777 == 0o600


async def test_the_end_of_one_that_cannot_end_by_itself_is_noticed_once(stayed: Stayed) -> None:
    await stayed.listens()
    units = Reloads()
    stayed.log.with_name("bound").touch()
    await helper.park(units, "a")
    # Asked again, it has done all that comes after that.
    await stayed.open()
    stayed.server.kill()
    await stayed.does("broken")
    assert dict(stayed.did())["broken"] == stayed.process.pid
    await helper.park(units, "a")
    assert [verb for verb, _ in stayed.did()] == ["park", "broken", "park"]


async def test_so_it_is_while_something_is_asked(stayed: Stayed) -> None:
    await stayed.listens()
    units = Reloads()
    stayed.log.with_name("bound").touch()
    await helper.park(units, "a")
    await stayed.open()
    stayed.log.with_name("kills").write_text(str(stayed.server.pid))
    await helper.wake(units, "a")
    await stayed.does("broken")
    assert [verb for verb, _ in stayed.did()] == ["park", "wake", "broken"]


async def test_of_one_that_may_it_is_not(stayed: Stayed) -> None:
    await stayed.listens()
    units = Reloads()
    bound = stayed.log.with_name("bound")
    bound.touch()
    await helper.park(units, "a")
    bound.unlink()
    await helper.park(units, "a")
    stayed.server.kill()
    await helper.park(units, "a")
    assert [verb for verb, _ in stayed.did()] == ["park"] * 3


async def test_one_that_fails_leaves_it_to_a_reload(stayed: Stayed) -> None:
    await stayed.listens()
    units = Reloads()
    await helper.wake(units, "a")
    assert units.parks == [False]
    await helper.park(units, "a")
    assert units.parks == [False]


async def test_without_one_the_unit_is_reloaded() -> None:
    units = Reloads()
    await helper.park(units, "a")
    await helper.wake(units, "a")
    assert units.parks == [True, False]


async def test_an_order_that_was_not_carried_out_is_taken_back() -> None:
    class Refuses(Units):
        async def reload(self, name: str) -> str:
            raise UnitRefused("systemd refused")

    with pytest.raises(UnitRefused):
        await helper.park(Refuses(), "a")
    assert not take_park_order("a")


async def test_a_stop_is_handed_over_and_ends_the_helper(stayed: Stayed) -> None:
    await stayed.listens()
    assert await asyncio.to_thread(handing.hand_over, "a") == 0
    # Nothing is left that systemd would kill: this is the last that it does.
    assert not socket_path("a").exists()
    assert [verb for verb, _ in stayed.did()] == [f"stop {__version__}"]


async def test_a_helper_of_another_release_is_not_trusted_with_a_stop(
    stayed: Stayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stayed.listens()
    monkeypatch.setattr(handing, "__version__", "0.0.1")
    assert await asyncio.to_thread(handing.hand_over, "a") is None


async def test_a_stop_that_was_not_begun_is_for_the_whole_program(stayed: Stayed) -> None:
    await stayed.listens()
    stayed.log.with_name("full").touch()
    assert await asyncio.to_thread(handing.hand_over, "a") is None
    assert stayed.did() == []


async def test_a_stop_that_is_for_the_whole_program_leaves_nothing_open(
    stayed: Stayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stays open tells of the helper's end, and it goes on."""
    await stayed.listens()
    monkeypatch.setattr(handing, "__version__", "0.0.1")
    before = await stayed.open()
    for _ in range(3):
        assert await asyncio.to_thread(handing.hand_over, "a") is None
    assert await stayed.open() == before


async def test_a_stop_that_dies_in_the_middle_is_not_begun_anew(stayed: Stayed) -> None:
    await stayed.listens()
    (files.runtime_root() / "bug").touch()
    assert await asyncio.to_thread(handing.hand_over, "a") == 1


async def test_a_stop_that_kills_its_unit_leaves_those_who_wait_for_it(stayed: Stayed) -> None:
    """Of a dump that hangs, podman, CRIU and conmon are left."""
    await stayed.listens()
    (files.runtime_root() / "hung").write_text(f"{os.getpid()} {stayed.conmon.pid}")
    assert await asyncio.to_thread(handing.hand_over, "a") == 0
    verbs = [verb for verb, _ in stayed.did()]
    assert verbs == [f"stop {__version__}", f"kill {stayed.conmon.pid}"]


def test_a_stop_that_takes_long_goes_out_of_the_way_of_a_clean_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking, asked = socket.socketpair()
    monkeypatch.setattr(handing, "QUICK", 0.01)
    monkeypatch.setattr(dot_control, "leave", lambda: asked.sendall(b"done\n"))
    with asking, asked:
        assert handing._answer(asking) == "done"


def test_without_a_helper_a_stop_is_for_the_whole_program() -> None:
    assert handing.hand_over("a") is None
    assert handing.hand_over("\\xff") is None


def test_what_a_stop_has_kept_is_all_that_is_left() -> None:
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    for suffix in (".json", ".place.json", ".leave.json", ".sock", ".conmon.pid", ".parked.json"):
        socket_path("a/b").with_suffix("").with_name(socket_path("a/b").stem + suffix).touch()
    others = [path for path in files.runtime_root().iterdir()]
    assert len(others) == 6
    assert not handing.clean_up("a-b")
    stopping_mark("a/b").touch()
    assert not handing.clean_up("a-b")
    assert all(path.exists() for path in others)
    mark_kept("a/b")
    assert handing.clean_up("a-b")
    assert not [*files.runtime_root().iterdir()]


def test_a_stop_that_cleans_up_leaves_its_clean_up_nothing_but_a_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("INVOCATION_ID", "0123")
    socket_path("a/b").touch()
    mark_kept("a/b")
    run_files.leave_clean("a/b")
    assert [path.name for path in files.runtime_root().iterdir()] == ["0123.clean"]
    monkeypatch.setenv("INVOCATION_ID", "4567")
    assert not handing.clean_up("a-b")
    monkeypatch.setenv("INVOCATION_ID", "0123")
    assert handing.clean_up("a-b")
    assert not [*files.runtime_root().iterdir()]


def test_what_no_unit_runs_leaves_the_mark_of_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    monkeypatch.delenv("INVOCATION_ID", raising=False)
    mark_kept("a/b")
    run_files.leave_clean("a/b")
    assert handing.clean_up("a-b")
    assert not [*files.runtime_root().iterdir()]


@pytest.mark.parametrize("run", ["0123", "4567"])
def test_the_clean_up_is_the_whole_programs_where_its_run_left_no_mark(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is installed; the program tells what it is given."""
    program = tmp_path / "llmux/llmux-model"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    program.chmod(0o755)
    script = Path("packaging/llmux-clean-up.in").read_text().replace("@libexecdir@", str(tmp_path))
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("INVOCATION_ID", "0123")
    mark_kept("-x y")
    run_files.leave_clean("-x y")
    monkeypatch.setenv("INVOCATION_ID", run)
    done = subprocess.run(
        ["sh", "-c", script, "llmux-clean-up", "\\x2dx\\x20y"],
        capture_output=True,
        text=True,
        check=False,
    )
    told = (0, "") if run == "0123" else (7, "clean-up -- \\x2dx\\x20y\n")
    assert ((done.returncode, done.stdout), done.stderr) == (told, "")


def test_a_command_leaves_no_dot_control_to_be_killed(tmp_path: Path) -> None:
    unit, told = tmp_path / "system.slice/llmux-model@a.service", tmp_path / "told"
    (unit / ".control").mkdir(parents=True)
    told.write_text("1:name=systemd:/x\n0::/system.slice/llmux-model@a.service/.control\n")
    dot_control.leave(str(tmp_path), str(told))
    assert (unit / "runtime/cgroup.procs").read_text() == "0"
    assert not (unit / ".control").exists()
    told.write_text("0::/system.slice/llmux-model@b.service/runtime\n")
    dot_control.leave(str(tmp_path), str(told))
    assert sorted(path.name for path in unit.parent.iterdir()) == [unit.name]
