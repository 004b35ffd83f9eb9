# SPDX-License-Identifier: MIT
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from llmuxd import files, memory
from llmuxd.config import Sleep
from llmuxd.meter.reading import GpuMemory, Holder, Reading, socket_path
from llmuxd.model import activation, freezer, gpu, parking, signals
from llmuxd.model.activation import Activation
from llmuxd.model.freezer import NotFrozen
from llmuxd.model.gpu import State
from llmuxd.model.moves import Stopwatch
from llmuxd.model.parking import CannotPark, CannotWake, NoPlace, Parked

from .engine import Engine, an_engine
from .fake_cuda import FakeCuda
from .fake_units import an_activation
from .fake_vllm import FakeVllm

API, CORE = 12, 13


class Vllm(FakeVllm):
    """A vLLM in a unit of its own."""

    def __init__(self, server: Engine):
        super().__init__(server)
        run = an_activation("a", server.port)
        self.run = replace(
            run,
            canary=True,
            park_sleep=Sleep.LEVEL_1,
            devices=("nvidia.com/gpu=0",),
            payload="/payload",
        )

    async def park(self, trial: bool = False) -> None:
        await asyncio.to_thread(parking.park, self.run, Stopwatch("park"), trial)

    async def wake(self) -> None:
        await asyncio.to_thread(parking.wake, self.run, Stopwatch("resume"))


class Freezer:
    """Stands for the kernel's."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.resists = False

    def freeze(self, directory: Path) -> None:
        self.log.append(f"freeze {directory}")
        if self.resists:
            raise NotFrozen("it does not freeze")

    def thaw(self, directory: Path) -> None:
        self.log.append(f"thaw {directory}")


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> Freezer:
    stand_in = Freezer()
    monkeypatch.setattr(freezer, "freeze", stand_in.freeze)
    monkeypatch.setattr(freezer, "thaw", stand_in.thaw)
    return stand_in


@pytest.fixture(autouse=True)
def unit(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit's processes: conmon without CUDA, and vLLM's two with it."""
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    cuda.process(API)
    cuda.process(CORE)
    monkeypatch.setattr(parking, "processes", lambda _: [11, API, CORE])
    monkeypatch.setattr(gpu, "LIBRARY", str(cuda.library))


async def test_a_park_and_its_reverse(cuda: FakeCuda) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        await vllm.park()
        assert vllm.asleep and activation.has_parked("a")
        assert [cuda.state(pid) for pid in (API, CORE)] == [State.CHECKPOINTED] * 2
        await vllm.wake()
        assert vllm.awake and not activation.has_parked("a")
        assert [cuda.state(pid) for pid in (API, CORE)] == [State.RUNNING] * 2
        assert vllm.posts == ["/v1/completions", "/sleep?level=1", "/wake_up", "/v1/completions"]


async def test_a_parked_model_is_not_parked_again(cuda: FakeCuda, kernel: Freezer) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        await vllm.park()
        posts, steps = list(vllm.posts), list(kernel.log)
        await vllm.park()
        assert (vllm.posts, kernel.log) == (posts, steps)
        await vllm.wake()
        assert vllm.awake and not activation.has_parked("a")


async def test_one_that_was_left_half_parked_is_put_back_before_it_is_parked(
    cuda: FakeCuda, kernel: Freezer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says while it sleeps is not what it is to say when it is back."""

    def crash(_: Path) -> None:
        raise SystemExit("killed")

    async with an_engine() as server:
        vllm = Vllm(server)
        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            patched.setattr(freezer, "freeze", crash)
            await vllm.park()
        assert vllm.asleep and activation.has_parked("a") and not activation.is_parked("a")
        await vllm.park()
        assert activation.is_parked("a") and cuda.state(CORE) is State.CHECKPOINTED
        await vllm.wake()
        assert vllm.awake and not activation.has_parked("a")


async def test_the_container_is_frozen_last_and_thawed_first(
    cuda: FakeCuda, kernel: Freezer
) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        await vllm.park()
        assert kernel.log == ["freeze /payload"] and activation.is_parked("a")
        await vllm.wake()
        assert kernel.log == ["freeze /payload", "thaw /payload"] and not activation.is_parked("a")


async def test_what_has_no_gpu_is_just_frozen(cuda: FakeCuda, kernel: Freezer) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        vllm.run = replace(vllm.run, devices=())
        await vllm.park()
        assert activation.is_parked("a")
        await vllm.wake()
        assert kernel.log == ["freeze /payload", "thaw /payload"]
        assert vllm.posts == ["/v1/completions"] * 2 and cuda.asked() == []


async def test_a_container_that_does_not_freeze_is_back_on_its_gpu(
    cuda: FakeCuda, kernel: Freezer
) -> None:
    kernel.resists = True
    async with an_engine() as server:
        vllm = Vllm(server)
        with pytest.raises(CannotPark, match="cannot be frozen"):
            await vllm.park()
        assert vllm.awake and not activation.has_parked("a")
        assert [cuda.state(pid) for pid in (API, CORE)] == [State.RUNNING] * 2


async def test_a_container_without_a_cgroup_of_its_own_stays(kernel: Freezer) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        vllm.run = replace(vllm.run, payload="")
        with pytest.raises(CannotPark, match="no cgroup of its own"):
            await vllm.park()
        assert kernel.log == [] and not activation.has_parked("a")


async def test_a_server_without_sleep_mode_is_parked_as_it_stands(cuda: FakeCuda) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        vllm.sleeps = False
        await vllm.park()
        await vllm.wake()
        assert vllm.posts == ["/v1/completions", "/v1/completions"]
        assert cuda.steps()[0][0] == "Lock"


@pytest.mark.parametrize("order", ["Lock:13=600", "Checkpoint:12=2"])
async def test_a_driver_that_refuses_leaves_the_model_as_it_was(cuda: FakeCuda, order: str) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        cuda.fail(order)
        with pytest.raises(CannotPark, match="CUDA could not be suspended"):
            await vllm.park()
        assert vllm.awake and not activation.has_parked("a")
        assert [cuda.state(pid) for pid in (API, CORE)] == [State.RUNNING] * 2


def _seen(*holders: Holder, used: int = 80 << 30) -> GpuMemory:
    return GpuMemory(0, "H100", 80 << 30, used, holders)


@asynccontextmanager
async def a_meter(*holders: Holder, used: int = 80 << 30) -> AsyncIterator[None]:
    """One that measured this of a GPU."""
    async with a_meter_of(_seen(*holders, used=used)):
        yield


@asynccontextmanager
async def a_meter_of(*readings: GpuMemory) -> AsyncIterator[None]:
    """One that measures something else each time, until the last."""
    rest = list(readings)

    async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now = rest.pop(0) if rest[1:] else rest[0]
        writer.write(Reading(0.0, (now,)).line())
        writer.close()

    async with await asyncio.start_unix_server(tell, socket_path()):
        yield


async def test_more_than_the_host_has_memory_for_stays_on_the_gpu(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "spare", lambda: 9 << 30)
    mine = Holder(API, "vllm", "a", 4 << 30), Holder(CORE, "vllm", "a", 6 << 30)
    async with an_engine() as server, a_meter(*mine):
        vllm = Vllm(server)
        with pytest.raises(CannotPark, match="10.7 GB of GPU memory, and the host has 9.7 GB"):
            await vllm.park()
        assert cuda.steps() == []
        assert vllm.awake and not activation.has_parked("a")


async def test_what_others_hold_there_is_not_to_be_taken_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "spare", lambda: 9 << 30)
    held = Holder(API, "vllm", "a", 4 << 30), Holder(99, "python3", None, 60 << 30)
    async with an_engine() as server, a_meter(*held, Holder(CORE, "vllm", "a", None)):
        await Vllm(server).park()
        assert activation.is_parked("a")


async def test_a_trial_that_the_host_has_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "spare", lambda: 9 << 30)
    mine = Holder(API, "vllm", "a", 2 << 30), Holder(CORE, "vllm", "a", 6 << 30)
    async with an_engine() as server, a_meter(*mine):
        await Vllm(server).park(trial=True)
        assert activation.is_parked("a")


@pytest.mark.parametrize("sleep", [Sleep.LEVEL_1, Sleep.LEVEL_2, Sleep.OFF])
@pytest.mark.parametrize("told", [None, 4 << 30])
async def test_a_trial_is_not_worth_what_may_be_too_much(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, sleep: Sleep, told: int | None
) -> None:
    """The driver does not tell what one of them holds, or shows one of them alone."""
    monkeypatch.setattr(memory, "spare", lambda: 9 << 30)
    seen = Holder(API, "vllm", "a", 4 << 30), Holder(99, "python3", None, 60 << 30)
    core = (Holder(CORE, "vllm", "a", None),) if told is None else ()
    async with an_engine() as server, a_meter(*seen, *core, used=70 << 30):
        vllm = Vllm(server)
        vllm.run = replace(vllm.run, park_sleep=sleep)
        with pytest.raises(CannotPark, match="10.7 GB of GPU memory, and the host has 9.7 GB"):
            await vllm.park(trial=True)
        assert cuda.steps() == []
        assert vllm.awake and not activation.has_parked("a")
        # By level 1 the weights come into memory at once.
        slept = any(post.startswith("/sleep") for post in vllm.posts)
        assert slept is (sleep is Sleep.LEVEL_2)


async def test_what_nobody_measures_is_too_much_for_a_trial(cuda: FakeCuda) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        with pytest.raises(CannotPark, match="llmux-gpus.service does not say"):
            await vllm.park(trial=True)
        assert vllm.awake and not activation.has_parked("a")
        await vllm.park()
        assert activation.is_parked("a")


async def test_an_engine_that_does_not_let_go_stays_on_its_gpu(cuda: FakeCuda) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        vllm.refused = {"/sleep?level=1"}
        with pytest.raises(CannotPark, match="the engine does not let go"):
            await vllm.park()
        assert vllm.awake and not activation.has_parked("a")
        assert cuda.asked() == []


async def test_an_engine_that_stays_asleep_is_no_comeback() -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        await vllm.park()
        vllm.refused = {"/wake_up"}
        with pytest.raises(CannotWake, match="refuses /wake_up"):
            await vllm.wake()
        assert activation.has_parked("a")


async def test_a_host_without_a_driver_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "LIBRARY", "libno-such-cuda.so.1")
    async with an_engine() as server:
        vllm = Vllm(server)
        with pytest.raises(CannotPark):
            await vllm.park()
        assert vllm.awake and not activation.has_parked("a")


async def test_a_resume_that_fails_is_told_and_stays_known(cuda: FakeCuda) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        await vllm.park()
        cuda.fail("Restore:13=700")
        with pytest.raises(CannotWake, match="does not come back"):
            await vllm.wake()
        assert activation.has_parked("a") and not activation.is_parked("a")


async def test_one_whose_gpu_turns_out_to_be_full_stays_parked(
    cuda: FakeCuda, kernel: Freezer
) -> None:
    """By the last measurement it was not, as where the driver shows but a part."""
    others = Holder(99, "python3", None, 80 << 30)
    async with an_engine() as server:
        vllm = Vllm(server)
        async with a_meter(Holder(API, "vllm", "a", 4 << 30)):
            await vllm.park()
        before = Parked.load("a")
        cuda.fail("Restore:13=2")
        async with a_meter_of(_seen(used=0), _seen(others)):
            with pytest.raises(NoPlace, match=r"full: GPU 0 .* python3 \(PID 99\) holds 85.9 GB"):
                await vllm.wake()
        assert activation.is_parked("a") and Parked.load("a") == before
        assert kernel.log == ["freeze /payload", "thaw /payload", "freeze /payload"]
        assert [cuda.state(pid) for pid in (API, CORE)] == [State.CHECKPOINTED] * 2
        cuda.fail()
        await vllm.wake()
        assert vllm.awake and not activation.has_parked("a")


async def test_one_that_is_half_back_does_not_pass_for_parked(cuda: FakeCuda) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        await vllm.park()
        cuda.fail("Restore:13=2", "Checkpoint:12=2")
        with pytest.raises(CannotWake) as raised:
            await vllm.wake()
        assert not isinstance(raised.value, NoPlace)
        assert not activation.is_parked("a")


MINE = Holder(API, "vllm", "a", 4 << 30), Holder(CORE, "vllm", "a", 6 << 30)
OTHERS = Holder(99, "vllm", "b", 70 << 30)


@pytest.mark.parametrize(
    ("free", "fits"), [(5 << 30, False), (9 << 30, False), (9600 << 20, False), (9800 << 20, True)]
)
async def test_it_takes_no_gpu_from_anybody(
    cuda: FakeCuda, kernel: Freezer, free: int, fits: bool
) -> None:
    """What it needs is what it held before its engine let go of a part: CUDA has room for less."""
    async with an_engine() as server:
        vllm = Vllm(server)
        async with a_meter(*MINE):
            await vllm.park()
        before, posts = Parked.load("a"), list(vllm.posts)
        steps, frozen = cuda.steps(), list(kernel.log)
        async with a_meter(OTHERS, used=(80 << 30) - free):
            if fits:
                await vllm.wake()
                assert vllm.awake and not activation.has_parked("a")
                return
            with pytest.raises(NoPlace, match=r"takes 10.7 GB: b \(PID 99\) holds 75.2 GB"):
                await vllm.wake()
        assert (cuda.steps(), kernel.log, vllm.posts) == (steps, frozen, posts)
        assert Parked.load("a") == before and activation.is_parked("a")
        async with a_meter(used=0):
            await vllm.wake()
        assert vllm.awake and not activation.has_parked("a")


async def test_who_has_just_left_a_gpu_is_not_in_the_way() -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        async with a_meter(*MINE):
            await vllm.park()
        async with a_meter_of(_seen(OTHERS), _seen(OTHERS), _seen(used=0)):
            await vllm.wake()
        assert vllm.awake and not activation.has_parked("a")


async def test_nor_is_what_the_driver_keeps_of_those_that_are_parked() -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        async with a_meter(*MINE):
            await vllm.park()
        own, other = Holder(CORE, "vllm", "a", 1 << 30), Holder(99, "vllm", "b", 4 << 20)
        async with a_meter(own, other, used=(71 << 30) + (4 << 20)):
            await vllm.wake()
        assert vllm.awake and not activation.has_parked("a")


async def test_an_engine_that_finds_its_gpu_full_half_way_says_by_whom() -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        async with a_meter(*MINE):
            await vllm.park()
        vllm.refused = {"/wake_up"}
        async with a_meter_of(_seen(used=0), _seen(OTHERS)):
            with pytest.raises(CannotWake, match=r"status 500: .* full: .* b \(PID 99\)") as raised:
                await vllm.wake()
        assert not isinstance(raised.value, NoPlace)
        assert activation.has_parked("a") and not activation.is_parked("a")


async def test_one_that_is_on_its_way_back_is_not_off_its_gpu_any_more(
    kernel: Freezer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever kills its helper, llmuxd does not take the GPU for free."""

    def crash(_: Path) -> None:
        raise SystemExit("killed")

    async with an_engine() as server:
        vllm = Vllm(server)
        await vllm.park()
        assert activation.is_parked("a")
        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            patched.setattr(freezer, "thaw", crash)
            parking.wake(vllm.run, Stopwatch("resume"))
        assert activation.has_parked("a") and not activation.is_parked("a")
        await vllm.wake()
        assert vllm.awake and not activation.has_parked("a")


@pytest.mark.parametrize("devices", [("nvidia.com/gpu=0",), ()])
async def test_another_answer_than_before_is_no_comeback(devices: tuple[str, ...]) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        vllm.run = replace(vllm.run, devices=devices)
        await vllm.park()
        vllm.text = "!!!!"
        with pytest.raises(CannotWake, match="its canary says"):
            await vllm.wake()
        assert activation.has_parked("a")


async def test_what_was_not_parked_has_nothing_to_wake(cuda: FakeCuda) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        await vllm.wake()
        assert vllm.posts == [] and cuda.asked() == []


def test_a_record_that_cannot_be_read_is_none() -> None:
    activation.parked_path("a").write_text("{")
    assert Parked.load("a") is None
    assert Activation.load("a") is None


async def test_the_processes_of_another_unit_are_stopped_and_not_frozen(
    kernel: Freezer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "stop", lambda directory: kernel.log.append(f"stop {directory}"))
    monkeypatch.setattr(signals, "proceed", lambda directory: kernel.log.append("proceed"))
    run = replace(an_activation("a", 1), unit="ollama.service", payload="/ollama")
    parking.park(run, Stopwatch("park"))
    assert activation.is_parked("a")
    assert parking.wake(run, Stopwatch("resume"))
    assert kernel.log == ["stop /ollama", "proceed"]
