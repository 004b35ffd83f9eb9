# SPDX-License-Identifier: MIT
"""What becomes of a model's container and its image where something came in between."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import pytest

from llmuxd import __version__, files
from llmuxd.config import ModelConfig, Snapshot
from llmuxd.events import Event
from llmuxd.model import cgroup, imaging, lifecycle, parking, resident
from llmuxd.model.activation import (
    Activation,
    Leave,
    note_place,
    noted_place,
    order_leave,
    stopping_mark,
    was_kept,
)
from llmuxd.model.attending import DiedAlone
from llmuxd.model.checkpoint import Checkpoint
from llmuxd.model.container import Container, Facts
from llmuxd.model.lifecycle import Lifecycle
from llmuxd.model.parking import NoPlace, Parked
from llmuxd.model.process import CommandFailed
from llmuxd.names import slug

from .fake_units import a_checkpoint, a_model, an_activation

MODEL = ModelConfig("a", "localhost/mine")


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """What was done to the container of a model that is parked; it has no image."""
    done: list[str] = []
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    note_place("a", (0,))
    replace(an_activation("a", 1), snapshot=Snapshot.LIVE).save()
    Parked(whole=True, vram={0: 5}).save("a")
    facts = Facts("c1", "i1", True, 1, 2, tmp_path)
    monkeypatch.setattr(cgroup, "kill_others", lambda: done.append("kill_others"))
    monkeypatch.setattr(Container, "inspect", lambda _: facts)
    monkeypatch.setattr(imaging, "is_whole", _is_whole)
    monkeypatch.setattr(imaging, "write", lambda *_: pytest.fail("it was dumped"))
    for name in ("halt", "kill", "stop", "remove"):
        monkeypatch.setattr(Container, name, lambda *_, name=name: done.append(name))
    yield done


def _is_whole(facts: Facts, run: Activation) -> bool:
    record = Checkpoint.load(run.model)
    return record is not None and record.valid and record.container_id == facts.id


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have its GPU."""

    def wake(*_: object) -> bool:
        raise NoPlace("GPU 0 has 0.0 GB free, and it takes 5.0 GB: b (PID 9) holds 80.0 GB")

    monkeypatch.setattr(parking, "wake", wake)


def _has_image(directory: Path, container: str = "c1") -> Checkpoint:
    directory.mkdir(exist_ok=True)
    (directory / "inventory.img").touch()
    record = replace(a_checkpoint(a_model("a")), container_id=container, directory=str(directory))
    record.save()
    return record


def _events(caplog: pytest.LogCaptureFixture) -> list[Event]:
    """What was told that has an entry in the catalog."""
    told = [getattr(record, "journal", {}).get("MESSAGE_ID") for record in caplog.records]
    return [Event(each) for each in told if each]


@pytest.mark.usefixtures("full")
def test_a_parked_model_whose_gpu_is_taken_keeps_the_image_before(
    did: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = _has_image(tmp_path / "checkpoint")
    Lifecycle(MODEL).stop()
    assert did == ["halt"] and was_kept("a")
    assert Checkpoint.load("a") == record
    assert _events(caplog) == [Event.WAKE_FAILED] * 2
    assert "no checkpoint is written, for that needs its GPU: GPU 0 has 0.0 GB" in caplog.text
    Lifecycle(MODEL).clean_up()
    assert did == ["halt"] and noted_place("a") is None


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("image", [None, "another's"])
def test_without_one_it_is_just_ended(did: list[str], tmp_path: Path, image: str | None) -> None:
    if image is not None:
        _has_image(tmp_path / "checkpoint", image)
    Lifecycle(MODEL).stop()
    assert did == ["stop"] and not was_kept("a")


def test_to_end_takes_nothing_that_is_on_disk(
    did: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = _has_image(tmp_path / "checkpoint")
    order_leave("a", Leave.END)
    Lifecycle(MODEL).stop()
    assert did == ["halt"] and Checkpoint.load("a") == record
    assert _events(caplog) == [Event.MEMORY_SHORT]
    assert "as memory is short and others have its GPU: it goes back" in caplog.text
    order_leave("a", Leave.STOP)
    Lifecycle(MODEL).stop()
    told = Checkpoint.load("a")
    assert did == ["halt", "stop"] and told is not None and told.invalid


def test_a_start_cleans_up_after_a_run_that_nobody_cleaned_up_after(
    did: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = _has_image(tmp_path / "checkpoint")

    class Starts:
        def __init__(self, *_: object):
            pass

        def run(self) -> None:
            did.append("start")
            raise CommandFailed(["podman"], 1, "as far as this")

    monkeypatch.setattr(lifecycle, "Start", Starts)
    for _ in range(2):
        with pytest.raises(CommandFailed, match="as far as this"):
            Lifecycle(MODEL).start()
        assert did == ["kill_others", "halt", "start"]
        assert Parked.load("a") is None and Checkpoint.load("a") == record
        did.clear()
    # Which is told of the run before, and not of this one: that has not served.
    Lifecycle(MODEL).clean_up()
    assert noted_place("a") is None
    did.clear()
    with pytest.raises(CommandFailed, match="as far as this"):
        Lifecycle(MODEL).start()
    assert did == ["start"]


def test_a_start_that_is_killed_at_once_is_known_to_the_next(
    did: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise CommandFailed(["podman"], 137, "killed")

    monkeypatch.setattr(Lifecycle, "_begin", killed)
    with pytest.raises(CommandFailed, match="killed"):
        Lifecycle(MODEL).start()
    assert did == [] and noted_place("a") == (0,)


@pytest.mark.parametrize("kept", [True, False])
def test_a_helper_cleans_up_after_a_stop_that_kept_an_image(
    kept: bool, did: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stay(_: str, listening: socket.socket, *more: object) -> None:
        assert model._answer(f"stop {__version__}") == "done"
        listening.close()

    model = Lifecycle(MODEL)
    model._listen()
    if kept:
        _has_image(tmp_path / "checkpoint")
    order_leave("a", Leave.END)
    monkeypatch.setattr(resident, "stay", stay)
    monkeypatch.setattr(resident, "apart", lambda *_: None)
    monkeypatch.setenv("INVOCATION_ID", "0123")
    hold = files.runtime_root() / f"{slug('a')}.hold"
    hold.touch()
    model.stay(1, lambda: None)
    assert (files.runtime_root() / "0123.clean").exists() is kept
    assert (noted_place("a") is None) is kept is not hold.exists()


def test_a_stop_that_finds_a_full_disk_is_left_to_the_unit_s_own(
    did: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    _has_image(tmp_path / "checkpoint")
    order_leave("a", Leave.END)
    with monkeypatch.context() as patched:
        patched.setattr(lifecycle, "mark_kept", full)
        told = Lifecycle(MODEL)._answer(f"stop {__version__}")
    assert told == "failed: it is for ExecStop" and not was_kept("a")
    Lifecycle(MODEL).stop()
    assert did == ["halt", "halt"] and was_kept("a")


def test_what_only_a_gpu_needs_is_not_loaded_by_a_start() -> None:
    script = "import sys, llmuxd.model.__main__; print(*sys.modules)"
    argv = [sys.executable, "-c", script]
    loaded = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    assert "llmuxd.model.lifecycle" in loaded
    assert not {f"llmuxd.model.{name}" for name in parking.LATER} & set(loaded)


def test_a_clean_up_that_podman_fails_is_left_to_the_next_start(
    did: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Container) -> None:
        raise CommandFailed(["podman"], 125, "database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Container, "inspect", fail)
        with pytest.raises(CommandFailed):
            Lifecycle(MODEL).clean_up()
    assert noted_place("a") == (0,)
    with pytest.raises(DiedAlone):
        an_activation("a", 1).save()
        Lifecycle(MODEL).clean_up()
    assert noted_place("a") is None and did[-1] == "remove"


def test_whom_a_stop_ends_nobody_takes_for_killed(did: list[str], tmp_path: Path) -> None:
    """The container has a server, its engine, and a shell of somebody's who looks around."""
    model = Lifecycle(MODEL)
    with (
        subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=PIPE) as server,
        subprocess.Popen(["sleep", "60"]) as shell,
    ):
        assert server.stdout is not None
        engine = int(server.stdout.readline())
        payload = tmp_path / "payload"
        payload.mkdir()
        (payload / "cgroup.procs").write_text(f"{shell.pid}\n{engine}\n{server.pid}\n4194304\n")
        replace(an_activation("a", 1), payload=str(payload)).save()
        model._first = server.pid
        watched = model._watched(1)
        assert watched.bound() == [server.pid, engine]
        watched.broken()
        assert (payload / "cgroup.kill").read_text() == "1"
        (payload / "cgroup.kill").unlink()
        stopping_mark("a").touch()
        assert watched.bound() == []
        watched.broken()
        stopping_mark("a").unlink()
        Parked(whole=False, vram={}).save("a")
        assert watched.bound() == []
        watched.broken()
        assert not (payload / "cgroup.kill").exists()
        os.kill(engine, signal.SIGKILL)
        shell.kill()
