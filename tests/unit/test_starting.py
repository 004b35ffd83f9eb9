# SPDX-License-Identifier: MIT
"""A start, as far as it needs no podman: what is asked once podman has restored."""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmuxd.config import ModelConfig
from llmuxd.meter.reading import GpuMemory, Holder, Reading
from llmuxd.model import cgroup, cuda_standby, engine, identity, later, port, starting, vllm, vram
from llmuxd.model.checkpoint import Checkpoint, manifest
from llmuxd.model.container import Container
from llmuxd.model.meanwhile import ask
from llmuxd.model.moves import Stopwatch
from llmuxd.model.process import CommandFailed
from llmuxd.model.server import WrongAnswer
from llmuxd.model.starting import CannotRestore, Running, ShortOf, Start

from .fake_units import an_identity

MODEL = ModelConfig(name="facebook/opt-125m", image="localhost/mine", devices=(), canary=False)
NO_PODMAN = CommandFailed(["podman"], 127, "podman: No such file or directory")


class Podman(Container):
    """Restores at once, and says which image there is; both may fail."""

    def __init__(self, image: str | CommandFailed, restores: CommandFailed | None = None):
        super().__init__(MODEL)
        self._image = image
        self._restores = restores
        self.said = ""
        self.events: list[object] = []
        self.asked = threading.Event()

    def image_id(self) -> str:
        self.asked.set()
        if isinstance(self._image, CommandFailed):
            raise self._image
        return self._image

    def restore(self, timeout: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.events.append("restore")
        # podman moves what runs in the unit's cgroup, and misses who begins just then.
        assert not self.asked.is_set()
        if self._restores is not None:
            raise self._restores

    def said_since(self, begin: float) -> str:
        return self.said

    def pids(self) -> tuple[int, int] | None:
        return 1, 1


@pytest.fixture
def checkpointed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good image on disk, and a server that is healthy at once."""
    (tmp_path / "inventory.img").write_bytes(b"whole")
    here = identity.here(MODEL.definition, "i1", ())
    Checkpoint(
        MODEL.name, "c0ffee", 21005, here, 0.0, 1.0, 5, str(tmp_path), manifest(tmp_path)
    ).save()
    monkeypatch.setattr(engine, "wait_healthy", lambda *_: None)
    monkeypatch.setattr(port, "free", lambda _: True)


def _restore(
    podman: Podman, close: Callable[[], None] = lambda: None, model: ModelConfig = MODEL
) -> Running:
    return Start(model, podman, lambda _: None, Stopwatch("restore"))._restore(ask(close))


@pytest.mark.usefixtures("checkpointed")
def test_nothing_is_restored_before_its_network_is_closed() -> None:
    def close() -> None:
        raise CommandFailed(["nft"], 1, "no such table")

    restored = CommandFailed(["podman"], 125, "it was restored")
    with pytest.raises(CommandFailed, match="no such table"):
        _restore(Podman("i1", restored), close)


@pytest.mark.usefixtures("checkpointed")
def test_the_driver_is_made_ready_beside_podman(monkeypatch: pytest.MonkeyPatch) -> None:
    podman = Podman("i1")

    @contextlib.contextmanager
    def standing_by(*whose: object, initialize: bool) -> Iterator[None]:
        podman.events.append((*whose, initialize))
        yield
        podman.events.append("end")

    monkeypatch.setattr(cuda_standby, "standing_by", standing_by)
    monkeypatch.setattr(Start, "_usable", lambda start: Checkpoint.load(MODEL.name))
    on_a_gpu = replace(MODEL, devices=("nvidia.com/gpu=0",))
    _restore(podman, model=on_a_gpu)
    assert podman.events == [(MODEL.name, on_a_gpu.device_names, True), "restore", "end"]
    _restore(Podman("i1"))
    assert len(podman.events) == 3, "without a GPU there is none"


@pytest.mark.usefixtures("checkpointed")
def test_a_cold_start_loads_what_it_needs_before_the_server_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model loads for minutes, in which llmuxd may be exchanged."""
    podman = Podman("i1")
    events = podman.events
    monkeypatch.setattr(Container, "run", lambda *_: events.append("run"))
    monkeypatch.setattr(port, "choose", lambda _: 21005)
    monkeypatch.setattr(later, "load", lambda: events.append("load"))
    monkeypatch.setattr(engine, "wait_healthy", lambda *_: events.append("healthy"))
    Start(MODEL, podman, lambda _: None, Stopwatch("cold"))._start_cold()
    assert events == ["run", "load", "healthy"]


@pytest.mark.usefixtures("checkpointed")
def test_the_image_is_looked_up_while_the_server_wakes() -> None:
    podman = Podman("i1")
    assert _restore(podman).port == 21005
    assert podman.asked.is_set()


@pytest.mark.usefixtures("checkpointed")
@pytest.mark.parametrize("image", ["i2", ""])
def test_what_was_restored_of_another_image_does_not_serve(image: str) -> None:
    with pytest.raises(CannotRestore, match="cannot be used: the container image changed"):
        _restore(Podman(image))
    record = Checkpoint.load(MODEL.name)
    assert record is not None and record.valid, "whoever starts it cold says that it is void"


@pytest.mark.usefixtures("checkpointed")
def test_an_image_that_nobody_can_look_up_is_no_reason_to_end_what_runs() -> None:
    assert _restore(Podman(CommandFailed(["podman"], 124, "it did not end"))).port == 21005


@pytest.mark.usefixtures("checkpointed")
def test_a_podman_that_does_not_work_costs_no_checkpoint() -> None:
    with pytest.raises(CommandFailed, match="No such file"):
        _restore(Podman(NO_PODMAN, NO_PODMAN))
    record = Checkpoint.load(MODEL.name)
    assert record is not None and record.valid


@pytest.mark.usefixtures("checkpointed")
def test_a_restore_that_fails_by_itself_does() -> None:
    with pytest.raises(CannotRestore, match="CRIU: spins"):
        _restore(Podman("i1", CommandFailed(["podman"], 125, "CRIU: spins")))
    record = Checkpoint.load(MODEL.name)
    assert record is not None and "CRIU: spins" in record.invalid


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was ended of a restore that failed."""
    ended: list[str] = []
    monkeypatch.setattr(cgroup, "kill_others", lambda: ended.append("kill"))
    monkeypatch.setattr(Container, "halt", lambda _: ended.append("halt"))
    return ended


@pytest.mark.usefixtures("checkpointed")
@pytest.mark.parametrize(
    ("why", "todo"),
    [
        ("write /run/crun/c0ffee: no space left on device", "a disk is full: make room"),
        ("CRIU: (criu/mem.c:1): Can't mmap: Cannot allocate memory", "the host's memory is full"),
    ],
)
def test_what_the_host_lacks_costs_no_checkpoint(ends: list[str], why: str, todo: str) -> None:
    with pytest.raises(ShortOf, match=todo) as told:
        _restore(Podman("i1", CommandFailed(["podman"], 125, why)))
    assert why in str(told.value) and "its checkpoint is kept" in str(told.value)
    record = Checkpoint.load(MODEL.name)
    assert record is not None and record.valid
    assert ends == ["kill", "halt"]


@pytest.mark.usefixtures("checkpointed", "ends")
@pytest.mark.parametrize(("free", "kept"), [(4096, True), (1 << 20, False)])
def test_a_full_disk_is_seen_where_nobody_tells_of_it(
    monkeypatch: pytest.MonkeyPatch, free: int, kept: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(ShortOf if kept else CannotRestore):
        _restore(Podman("i1", CommandFailed(["podman"], 125, "CRIU: something")))
    record = Checkpoint.load(MODEL.name)
    assert record is not None and record.valid is kept


@pytest.mark.usefixtures("checkpointed", "ends")
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("where", ["criu", "wake"])
def test_a_gpu_that_others_have_filled_costs_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, where: str, shared: bool
) -> None:
    """Where nobody else is on it, it is the image that takes too much."""
    model = replace(MODEL, devices=("/dev/gpu",))
    monkeypatch.setattr(identity, "here", lambda *_: an_identity(model))
    _sleeping(overslept=True, here=an_identity(model))
    monkeypatch.setattr(vram, "is_shared", lambda *_: shared)
    podman = Podman("i1")
    if where == "criu":
        podman.said = "(1.2) cuda_plugin: restore of process 7: CUDA_ERROR_OUT_OF_MEMORY (2)"
        monkeypatch.setattr(engine, "wait_healthy", _dies)
    else:
        podman.said = "RuntimeError: CUDA Error: out of memory at /csrc/cumem_allocator.cpp:62"
        _take_up(monkeypatch, WrongAnswer("it refuses /wake_up with status 500"))
    with pytest.raises(ShortOf if shared else CannotRestore):
        _restore(podman, model=model)
    record = Checkpoint.load(MODEL.name)
    assert record is not None and record.valid is shared
    assert record.slept_badly is (where == "wake" and not shared)


@pytest.mark.parametrize(("other", "shared"), [(4 << 20, False), (4 << 30, True)])
def test_what_the_driver_keeps_of_parked_models_is_no_share_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, other: int, shared: bool
) -> None:
    holders = Holder(12, "vllm", "a", 8 << 30), Holder(13, "vllm", "b", other)
    seen = Reading(0.0, (GpuMemory(0, "H100", 80 << 30, (8 << 30) + other, holders),))
    monkeypatch.setattr(vram, "_measured", lambda: seen)
    assert vram.is_shared((0,), "a") is shared
    assert vram.is_shared((1,), "a") is None


@pytest.mark.usefixtures("checkpointed", "ends")
def test_what_never_fits_is_not_tried_for_ever_where_nobody_measures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is tried for as long as a program may need to leave the GPU, however often that is."""
    model = replace(MODEL, devices=("/dev/gpu",))
    monkeypatch.setattr(identity, "here", lambda *_: an_identity(model))
    _sleeping(overslept=False, here=an_identity(model))
    _take_up(monkeypatch, WrongAnswer("it refuses /wake_up with status 500"))
    begin = time.time()

    def fails(after: float, how: type[Exception]) -> None:
        podman = Podman("i1")
        podman.said = "RuntimeError: CUDA Error: out of memory at /csrc/cumem_allocator.cpp:62"
        monkeypatch.setattr(starting, "time", SimpleNamespace(time=lambda: begin + after))
        with pytest.raises(how):
            _restore(podman, model=model)

    for after in (0.0, 1.0, 11.0, 590.0):
        fails(after, ShortOf)
    with monkeypatch.context() as patched:
        _take_up(patched, None)
        _restore(Podman("i"), model=model)
    fails(601.0, ShortOf)
    fails(1300.0, ShortOf)
    fails(1301.0, CannotRestore)
    record = Checkpoint.load(MODEL.name)
    assert record is not None and "refuses /wake_up" in record.invalid


def _dies(*_: object) -> None:
    raise engine.EngineTimeout("it did not become healthy within 1 s")


def _sleeping(*, overslept: bool, here: identity.Identity | None = None) -> None:
    record = Checkpoint.load(MODEL.name)
    assert record is not None
    here = here or record.identity
    replace(record, back=("/wake_up",), overslept=overslept, identity=here).save()


def _take_up(monkeypatch: pytest.MonkeyPatch, error: WrongAnswer | None) -> None:
    def take_up(port: int, back: tuple[str, ...]) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(vllm, "take_up", take_up)


@pytest.mark.usefixtures("checkpointed")
@pytest.mark.parametrize("before", [False, True])
def test_one_that_does_not_wake_is_to_sleep_no_more_the_second_time(
    monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    _sleeping(overslept=before)
    _take_up(monkeypatch, WrongAnswer("it refuses /wake_up with status 500"))
    with pytest.raises(CannotRestore, match="it refuses /wake_up"):
        _restore(Podman("i1"))
    record = Checkpoint.load(MODEL.name)
    assert record is not None and record.invalid
    assert record.overslept and record.slept_badly is before


@pytest.mark.usefixtures("checkpointed")
def test_a_measurement_that_does_not_wake_says_nothing_of_other_ways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _sleeping(overslept=True)
    record = Checkpoint.load(MODEL.name)
    assert record is not None
    replace(record, trial=True, overslept=False).save()
    _take_up(monkeypatch, WrongAnswer("it refuses /wake_up with status 500"))
    with pytest.raises(CannotRestore, match="it refuses /wake_up"):
        _restore(Podman("i1"))
    record = Checkpoint.load(MODEL.name)
    assert record is not None and record.invalid
    assert not record.overslept and not record.slept_badly


@pytest.mark.usefixtures("checkpointed")
def test_one_that_wakes_is_trusted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _sleeping(overslept=True)
    _take_up(monkeypatch, None)
    _restore(Podman("i1"))
    record = Checkpoint.load(MODEL.name)
    assert record is not None and record.valid and not record.overslept
