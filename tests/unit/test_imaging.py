# SPDX-License-Identifier: MIT
"""What is on disk after a dump, and after a crash in the middle of one."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmuxd import memory
from llmuxd.config import ModelConfig, Sleep
from llmuxd.meter.reading import GpuMemory, Holder, Reading
from llmuxd.model import (
    canary,
    cgroup,
    checkpoint,
    cuda_standby,
    gpu,
    identity,
    imaging,
    keeping,
    parking,
    vllm,
    vram,
)
from llmuxd.model.activation import RELEASED, Activation
from llmuxd.model.checkpoint import SHM, Checkpoint, settle
from llmuxd.model.container import Container, Facts
from llmuxd.model.imaging import Written
from llmuxd.model.keeping import Limits, Room
from llmuxd.model.moves import Stopwatch
from llmuxd.model.process import TIMED_OUT, CommandFailed
from llmuxd.model.server import WrongAnswer

from .fake_cuda import FakeCuda
from .fake_units import an_activation
from .page_cache import cached, is_disk


class FakeContainer(Container):
    """Its dump writes `text` to two files, as far as it gets."""

    def __init__(self, userdata: Path):
        super().__init__(ModelConfig("a", "i"))
        self.facts = Facts("c1", "i1", True, 1, 2, userdata)
        self.text = "first"
        self.told: list[str] = []
        self.fail: Callable[[], None] = lambda: None

    def checkpoint(self, directory: Path) -> None:
        assert directory == self.facts.checkpoint_directory
        directory.mkdir(exist_ok=True)
        (directory / "inventory.img").write_text(self.text)
        self.fail()
        (directory / "pages-1.img").write_text(self.text)
        (self.facts.userdata / SHM).write_text(self.text)


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeContainer:
    """Of a unit that runs, on a host that does not change."""
    here = identity.Identity("d", "i1", "m", "k", "c")
    monkeypatch.setattr(identity, "here", lambda *_: here)
    monkeypatch.setattr(cgroup, "kill_others", lambda: None)
    (tmp_path / "userdata").mkdir()
    return FakeContainer(tmp_path / "userdata")


RUN = an_activation("a", 21000)
NO_LIMITS = Limits()


def dump(
    container: FakeContainer,
    text: str,
    run: Activation = RUN,
    limits: Limits = NO_LIMITS,
    trial: bool = False,
) -> Written:
    container.text = text
    container.told = []
    room = Room(run.model, container.facts.checkpoint_directory, limits)
    return imaging.write(
        container, container.facts, run, Stopwatch("checkpoint"), container.told.append, room, trial
    )


def texts(container: FakeContainer) -> dict[str, str]:
    """All that is below the container's userdata."""
    userdata = container.facts.userdata
    return {str(p.relative_to(userdata)): p.read_text() for p in userdata.rglob("*.img")}


def image(text: str) -> dict[str, str]:
    return {"checkpoint/inventory.img": text, "checkpoint/pages-1.img": text}


def break_down() -> None:
    raise CommandFailed(["podman", "container", "checkpoint"], TIMED_OUT, "CRIU: no")


def crash() -> None:
    raise SystemExit("power cut")


def refuse() -> str:
    raise WrongAnswer("it answers its canary with status 500")


def test_a_new_image_takes_the_place_of_the_one_before(container: FakeContainer) -> None:
    assert dump(container, "first") is Written.NEW
    assert dump(container, "second") is Written.NEW
    assert container.told == [RELEASED]
    assert texts(container) == image("second")
    assert imaging.is_whole(container.facts, RUN)


def test_crius_plugin_is_answered_during_the_dump(
    container: FakeContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []

    @contextlib.contextmanager
    def standing_by(*whose: object) -> Iterator[None]:
        events.append(whose)
        yield
        events.append("end")

    monkeypatch.setattr(cuda_standby, "standing_by", standing_by)
    container.fail = lambda: events.append("dump")
    run = replace(RUN, devices=("nvidia.com/gpu=0",))
    assert dump(container, "first", run) is Written.NEW
    assert events == [(RUN.model, run.devices), "dump", "end"]


def test_a_new_image_remembers_that_the_one_before_did_not_wake_up(
    container: FakeContainer,
) -> None:
    dump(container, "first")
    first = Checkpoint.load("a")
    assert first is not None and not first.overslept
    replace(first, overslept=True).invalidate("it does not wake up")
    assert dump(container, "second") is Written.NEW
    second = Checkpoint.load("a")
    assert second is not None and second.valid and second.overslept


def test_a_dump_that_fails_leaves_the_one_before(container: FakeContainer) -> None:
    dump(container, "first")
    container.fail = break_down
    assert dump(container, "second") is Written.OLD
    assert container.told == []
    assert texts(container) == image("first")
    assert imaging.is_whole(container.facts, RUN)


def test_a_first_dump_that_fails_leaves_nothing_but_the_reason(container: FakeContainer) -> None:
    container.fail = break_down
    assert dump(container, "first") is Written.NOTHING
    assert texts(container) == {}
    record = Checkpoint.load("a")
    assert record is not None and "CRIU: no" in record.invalid


def test_a_crash_in_the_middle_leaves_the_one_before(container: FakeContainer) -> None:
    dump(container, "first")
    container.fail = crash
    with pytest.raises(SystemExit):
        dump(container, "second")
    assert not imaging.is_whole(container.facts, RUN)
    settle(container.facts.checkpoint_directory, Checkpoint.load("a"))
    assert texts(container) == image("first")
    assert imaging.is_whole(container.facts, RUN)


def test_a_crash_behind_the_dump_leaves_the_one_before_with_its_shm(
    container: FakeContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump(container, "first")
    shm = container.facts.userdata / SHM
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(imaging, "_sync", lambda *_, **__: crash())
        dump(container, "second")
    assert shm.read_text() == "second"
    settle(container.facts.checkpoint_directory, Checkpoint.load("a"))
    assert texts(container) == image("first")
    assert shm.read_text() == "first"
    dump(container, "third")
    assert shm.read_text() == "third"
    assert sorted(p.name for p in container.facts.userdata.iterdir()) == ["checkpoint", shm.name]


def test_a_crash_before_the_dump_began_does_too(container: FakeContainer) -> None:
    dump(container, "first")
    directory = container.facts.checkpoint_directory
    directory.rename(directory.with_name("checkpoint.before"))
    settle(directory, Checkpoint.load("a"))
    assert imaging.is_whole(container.facts, RUN)


def test_a_crash_after_the_record_was_written_leaves_the_new_one(
    container: FakeContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump(container, "first")
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(imaging, "settle", lambda *_: crash())
        dump(container, "second")
    assert len(texts(container)) == 4
    settle(container.facts.checkpoint_directory, Checkpoint.load("a"))
    assert texts(container) == image("second")


def test_what_was_taken_to_be_measured_is_taken_anew(container: FakeContainer) -> None:
    assert dump(container, "first", trial=True) is Written.NEW
    record = Checkpoint.load("a")
    assert record is not None and record.valid and record.trial
    assert not imaging.is_whole(container.facts, RUN)
    assert dump(container, "second") is Written.NEW
    assert imaging.is_whole(container.facts, RUN)


def test_a_measurement_lets_go_of_what_it_is_to_and_the_record_says_of_what(
    container: FakeContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of what the image before did not come back from."""
    asked: list[Sleep] = []

    def nap(port: int, how: Sleep) -> vllm.Nap:
        asked.append(how)
        return vllm.Nap((), ("/wake_up",)) if how is Sleep.OFF else vllm.Nap(("x",), ("/wake_up",))

    monkeypatch.setattr(vllm, "nap", nap)
    monkeypatch.setattr(vllm, "let_go", lambda port, nap: None)
    run = replace(RUN, image_sleep=Sleep.LEVEL_1)
    dump(container, "first", run)
    first = Checkpoint.load("a")
    assert first is not None and first.sleep is Sleep.LEVEL_1 and first.back == ("/wake_up",)
    replace(first, slept_badly=True).invalidate("its canary says no")
    dump(container, "second", replace(run, image_sleep=Sleep.LEVEL_2), trial=True)
    second = Checkpoint.load("a")
    assert second is not None and second.sleep is Sleep.LEVEL_2 and not second.slept_badly
    assert asked == [Sleep.LEVEL_1, Sleep.LEVEL_2]
    replace(second, slept_badly=True).save()
    dump(container, "third", run)
    third = Checkpoint.load("a")
    assert third is not None and third.sleep is Sleep.OFF and third.back == ()
    assert asked == [Sleep.LEVEL_1, Sleep.LEVEL_2]


@pytest.mark.parametrize("trial", [False, True])
def test_the_size_of_one_measured_in_another_way_is_not_expected(
    container: FakeContainer, monkeypatch: pytest.MonkeyPatch, trial: bool
) -> None:
    expected: list[int] = []
    monkeypatch.setattr(Room, "make", lambda room, size: expected.append(size))
    monkeypatch.setattr(vllm, "nap", lambda port, how: vllm.Nap(("x",), ("/wake_up",)))
    monkeypatch.setattr(vllm, "let_go", lambda port, nap: None)
    dump(container, "first", replace(RUN, image_sleep=Sleep.LEVEL_1), trial=True)
    dump(container, "second", replace(RUN, image_sleep=Sleep.LEVEL_2), trial=trial)
    second = Checkpoint.load("a")
    assert second is not None and second.size
    dump(container, "third", replace(RUN, image_sleep=Sleep.LEVEL_2), trial=trial)
    assert expected == [0, 0, second.size]


@pytest.mark.parametrize("trial", [False, True])
def test_what_is_measured_is_read_from_the_disk_again(
    container: FakeContainer, tmp_path: Path, trial: bool
) -> None:
    if not is_disk(tmp_path):
        pytest.skip("there is no disk below it")
    dump(container, "x" * (4 << 20), trial=trial)
    pages = container.facts.checkpoint_directory / "pages-1.img"
    assert cached(pages) == (0 if trial else 1)
    assert pages.stat().st_size == 4 << 20


@pytest.mark.parametrize("sleep", [Sleep.LEVEL_1, Sleep.LEVEL_2, Sleep.OFF])
def test_a_measurement_that_the_memory_has_no_room_for_is_not_dumped(
    container: FakeContainer, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, sleep: Sleep
) -> None:
    """Nobody measures what it holds: that may be more than there is."""
    asked: list[vllm.Nap] = []
    monkeypatch.setattr(gpu, "LIBRARY", str(cuda.library))
    monkeypatch.setattr(parking, "processes", lambda _: [cuda.process(12)])
    monkeypatch.setattr(vllm, "nap", lambda port, how: vllm.Nap(("x",)))
    monkeypatch.setattr(vllm, "let_go", lambda port, nap: asked.append(nap))
    run = replace(RUN, devices=("nvidia.com/gpu=0",), image_sleep=sleep)
    dump(container, "first", run)
    assert dump(container, "second", run, trial=True) is Written.OLD
    assert texts(container) == image("first")
    # By level 1 the weights come into memory at once.
    assert len(asked) == (1 if sleep is Sleep.LEVEL_1 else 2)
    assert dump(container, "third", run) is Written.NEW


@pytest.mark.parametrize("sleep", [Sleep.LEVEL_2, Sleep.OFF])
def test_what_is_more_than_the_host_has_memory_for_is_not_dumped(
    container: FakeContainer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sleep: Sleep,
) -> None:
    """Where its engine lets go of enough, it is."""
    held = {Sleep.OFF: 30 << 30, Sleep.LEVEL_2: 1 << 30}
    holds = 0

    def let_go(port: int, nap: vllm.Nap) -> None:
        nonlocal holds
        holds = held[sleep]

    def measured() -> Reading:
        holders = Holder(12, "vllm", "a", holds), Holder(13, "vllm", "b", 40 << 30)
        return Reading(0.0, (GpuMemory(0, "H100", 80 << 30, 80 << 30, holders),))

    monkeypatch.setattr(memory, "reachable", lambda: 29 << 30)
    monkeypatch.setattr(vram, "_measured", measured)
    monkeypatch.setattr(parking, "processes", lambda _: [11, 12])
    monkeypatch.setattr(vllm, "nap", lambda port, how: vllm.Nap(("x",) * (how is not Sleep.OFF)))
    monkeypatch.setattr(vllm, "let_go", let_go)
    run = replace(RUN, devices=("nvidia.com/gpu=0",), image_sleep=sleep)
    dump(container, "first")
    holds = 30 << 30
    kept = Written.NEW if sleep is Sleep.LEVEL_2 else Written.OLD
    assert dump(container, "second", run) is kept
    assert texts(container) == image("second" if kept is Written.NEW else "first")
    assert imaging.is_whole(container.facts, run)
    told = "it holds 32.2 GB of GPU memory, and the host has 31.1 GB to spare"
    assert (told in caplog.text) is (kept is Written.OLD)


@pytest.fixture
def sleepless(monkeypatch: pytest.MonkeyPatch) -> Activation:
    """A run whose engine refuses to sleep."""

    def refuse(port: int, nap: vllm.Nap) -> None:
        if nap.out:
            raise WrongAnswer("it refuses /sleep?level=2 with status 500")

    naps = {Sleep.LEVEL_2: vllm.Nap(("/sleep?level=2",), ())}
    monkeypatch.setattr(vllm, "nap", lambda port, how: naps.get(how, vllm.Nap()))
    monkeypatch.setattr(vllm, "let_go", refuse)
    return replace(RUN, image_sleep=Sleep.LEVEL_2)


def test_a_measurement_that_fails_says_why_and_nothing_else(
    container: FakeContainer, sleepless: Activation
) -> None:
    """One that was measured before is no measurement of it, and the next one may sleep."""
    dump(container, "first", trial=True)
    assert dump(container, "second", sleepless, trial=True) is Written.NOTHING
    record = Checkpoint.load("a")
    assert record is not None and "refuses /sleep?level=2" in record.invalid
    assert not record.slept_badly


def test_a_measurement_that_fails_before_its_dump_leaves_a_lasting_image(
    container: FakeContainer, sleepless: Activation
) -> None:
    dump(container, "first")
    before = Checkpoint.load("a")
    assert dump(container, "second", sleepless, trial=True) is Written.OLD
    assert Checkpoint.load("a") == before
    assert texts(container) == image("first")
    assert imaging.is_whole(container.facts, RUN)


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called once an image is there: it has the disk for itself, and another only in its place."""

    def fill() -> None:
        record = Checkpoint.load("a")
        assert record is not None
        replace(record, size=1 << 60).save()
        # With what the one before gives back it would fit.
        monkeypatch.setattr(keeping, "disk_usage", lambda _: 1 << 60)
        monkeypatch.setattr(keeping, "SHARE", 1 << 40)

    return fill


def test_a_disk_without_room_for_two_gives_up_the_one_before(
    container: FakeContainer, small_disk: Callable[[], None]
) -> None:
    dump(container, "first")
    small_disk()
    container.fail = crash
    with pytest.raises(SystemExit):
        dump(container, "second")
    assert "checkpoint.before/inventory.img" not in texts(container)
    record = Checkpoint.load("a")
    assert record is not None and record.invalid == "the checkpoint was not finished"
    assert record.size == 1 << 60  # what the next one is to have room for


def test_on_such_a_disk_what_fails_before_the_dump_costs_nothing(
    container: FakeContainer, small_disk: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dump(container, "first")
    small_disk()
    with monkeypatch.context() as patched:
        patched.setattr(canary, "of_run", lambda _: refuse())
        assert dump(container, "second") is Written.OLD
    assert dump(container, "third", limits=Limits(space=1)) is Written.OLD
    assert container.told == []
    assert texts(container) == image("first")
    assert imaging.is_whole(container.facts, RUN)


def test_an_image_elsewhere_is_written_there(container: FakeContainer, tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    container.facts.checkpoint_directory.symlink_to(tmp_path / "fast")
    dump(container, "first")
    container.fail = break_down
    assert dump(container, "second") is Written.OLD
    assert imaging.is_whole(container.facts, RUN)
    assert [path.name for path in tmp_path.glob("fast*")] == ["fast"]


def test_its_names_are_on_the_disk_before_the_record_is(
    container: FakeContainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mkdir or rename that is not, a power cut leaves the image before, or none."""
    fast, directory = tmp_path / "fast/image", container.facts.checkpoint_directory
    fast.mkdir(parents=True)
    directory.symlink_to(fast)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    dump(container, "first")
    first, last = (n for n, path in enumerate(synced) if path.endswith(".json.new"))
    by_then = synced[first:last]
    assert {str(path) for path in (fast, fast.parent, directory.parent)} <= set(by_then)


def test_one_that_is_larger_than_all_may_be_is_not_written_again(
    container: FakeContainer, caplog: pytest.LogCaptureFixture
) -> None:
    assert dump(container, "first", limits=Limits(space=1)) is Written.NOTHING
    assert container.told == [RELEASED] and texts(container) == {}
    record = Checkpoint.load("a")
    assert record is not None and "checkpoint_space is 0.0 GB" in record.invalid and record.size
    assert dump(container, "second", limits=Limits(space=1)) is Written.NOTHING
    assert container.told == []
    assert dump(container, "third") is Written.NEW


def test_what_podman_keeps_beside_the_image_is_part_of_it(
    container: FakeContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    dump(container, "first")
    assert str(container.facts.userdata / SHM) in synced
    record = Checkpoint.load("a")
    assert record is not None
    assert record.size > checkpoint.disk_usage(container.facts.checkpoint_directory)
