# SPDX-License-Identifier: MIT
"""What keeps a unit from its place: its helper goes on when it is told to, and only then."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmuxd import files, hold, names
from llmuxd.hold import Hold, Waiting
from llmuxd.model import __main__ as program
from llmuxd.model import handing, waiting
from llmuxd.model.activation import note_place
from llmuxd.model.process import CommandFailed

HOLDER = """
import sys
from llmuxd.hold import Hold
held = Hold("a")
print("held", flush=True)
sys.stdin.read()
"""
ENOUGH = 5.0


@pytest.fixture(autouse=True)
def _directory(directories: Path) -> None:
    files.runtime_root().mkdir(parents=True)


def the_file() -> Path:
    return files.runtime_root() / f"{names.slug('a')}.hold"


def meanwhile(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_who_is_let_go_goes_on() -> None:
    held, told = Hold("a"), []

    def let_go() -> None:
        told.append("lifted")
        held.lift()

    here = Waiting("a")
    thread = meanwhile(let_go)
    assert here.wait(ENOUGH) and told == ["lifted"]
    thread.join()
    assert not the_file().exists()


def test_so_does_who_comes_only_afterwards_or_was_never_held() -> None:
    assert waiting.may_start("a")
    Hold("a").lift()
    assert waiting.may_start("a")


def test_who_is_dropped_does_not() -> None:
    held = Hold("a")
    here = Waiting("a")
    held.drop()
    assert not here.wait(ENOUGH)
    # Nor one whose helper comes only now.
    assert not Waiting("a").wait(ENOUGH)


def test_who_is_held_by_one_that_is_killed_does_not_go_on() -> None:
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        here = Waiting("a")
        thread = meanwhile(holder.kill)
        assert not here.wait(ENOUGH)
        thread.join()


def test_nobody_is_held_for_ever() -> None:
    held, begin = Hold("a"), time.monotonic()
    assert not Waiting("a").wait(0.01)
    assert time.monotonic() < begin + ENOUGH
    assert the_file().exists()
    held.drop()


def test_there_is_one_at_a_time() -> None:
    """Another in its place would lift it."""
    held = Hold("a")
    with pytest.raises(FileExistsError):
        Hold("a")
    here = Waiting("a")
    held.drop()
    with pytest.raises(FileExistsError):
        Hold("a")
    assert not here.wait(ENOUGH)
    assert [*files.runtime_root().iterdir()] == [the_file()]


def test_a_clean_up_forgets_what_is_nobodys() -> None:
    held = Hold("a")
    hold.forget("a")
    assert the_file().exists()
    held.drop()
    hold.forget("a")
    assert not the_file().exists()
    hold.forget("a")


def test_of_a_start_that_was_held_to_its_end_nothing_is_to_be_cleaned_up() -> None:
    held = Hold("a")
    assert handing.clean_up("a") and the_file().exists()
    held.drop()
    assert handing.clean_up("a") and not the_file().exists()


def test_one_that_was_not_is_cleaned_up_after() -> None:
    assert not handing.clean_up("a")
    held = Hold("a")
    note_place("a", [0])
    assert not handing.clean_up("a") and the_file().exists()
    held.drop()
    assert not handing.clean_up("a") and not the_file().exists()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said to systemd; nothing starts."""
    said: list[str] = []

    monkeypatch.setattr(waiting, "notify", said.append)
    monkeypatch.setattr(waiting, "STOP_LIMIT", 0.01)
    monkeypatch.setattr(sys, "argv", ["llmux-model", "start", "--", "a"])
    monkeypatch.setattr(program, "_model", lambda *_: pytest.fail("it was started"))
    return said


def test_a_start_that_is_dropped_has_its_unit_stopped(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(waiting, "run", lambda argv, limit: asked.append(argv))
    Hold("a").drop()
    assert program.main() == 1
    assert asked == [["systemctl", "stop", "--no-block", "--", "llmux-model@a.service"]]
    assert told[0].endswith("STATUS=waiting for its place on the GPU")
    assert told[1:] == ["STATUS=failed: llmuxd did not go on with its start"]


def test_where_that_is_not_to_be_had_it_fails(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(argv: list[str], limit: float) -> None:
        raise CommandFailed(argv, 1, "no")

    monkeypatch.setattr(waiting, "run", refuses)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits for nothing"))
    Hold("a").drop()
    assert program.main() == 1
    assert told[1:] == ["STATUS=failed: llmuxd did not go on with its start"]


def test_what_is_over_closes_nobody_elses_file() -> None:
    held = Hold("a")
    held.lift()
    with open(os.devnull, "rb") as other:
        held.drop()
        held.lift()
        assert other.read() == b""
