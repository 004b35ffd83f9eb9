# SPDX-License-Identifier: MIT
"""Models that say `vram` come in by what is measured after the last one left."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from llmuxd.config import ModelConfig, Tier
from llmuxd.errors import NoRoom
from llmuxd.policy import Gpu
from llmuxd.state import State

from .fake_units import DOWN, UP, Gate, a_model
from .simulated import simulated
from .stage import Stage, on_stage

GIB = 1 << 30


class Host:
    """A GPU of 24 GiB. It has the memory of the models that run, as the units' log has it."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.foreign = 0
        self.takes = 0  # GiB of each model, whatever it says
        self.known = True
        self.gate: Gate | None = None

    async def measure(self) -> dict[int, Gpu]:
        """Logged among the units' verbs."""
        assert self.stage is not None
        self.stage.units.log.append("measure")
        measured = self._look(self.stage)
        gate, self.gate = self.gate, None
        if gate is not None:
            await gate.passed()
        return measured

    def _look(self, stage: Stage) -> dict[int, Gpu]:
        if not self.known:
            return {}
        held = {
            name: self.takes * GIB if self.takes else model.vram or 0
            for name, model in stage.config.models.items()
            if not stage.units.status(name).down and not stage.switcher.model(name).parked
        }
        return {0: Gpu(24 * GIB, self.foreign * GIB, held=held)}


@contextlib.asynccontextmanager
async def on_host(*models: ModelConfig) -> AsyncIterator[tuple[Host, Stage]]:
    host = Host()
    async with on_stage(*models, run=False, gauge=host.measure) as stage:
        host.stage = stage
        loop = asyncio.create_task(stage.switcher.run())
        try:
            yield host, stage
        finally:
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop


def small(name: str, gib: int) -> ModelConfig:
    return replace(a_model(name), vram=gib * GIB)


async def test_who_comes_after_one_that_left_comes_after_a_measurement() -> None:
    async with on_host(small("a", 20), small("b", 20)) as (_, stage):
        await stage.ask("a")
        await stage.ask("b")
        assert stage.units.log == ["measure", "start a", "stop a", "measure", "start b"]


async def test_nothing_is_measured_where_nobody_left() -> None:
    async with on_host(small("a", 10), small("b", 10)) as (_, stage):
        await stage.ask("a")
        await stage.ask("b")
        await stage.ask("a")
        assert stage.units.log == ["measure", "start a", "start b"]


async def test_whole_gpus_need_no_measuring() -> None:
    async with on_host(a_model("a"), a_model("b")) as (_, stage):
        await stage.ask("a")
        await stage.ask("b")
        assert stage.units.log == ["start a", "stop a", "start b"]


async def test_what_another_program_took_meanwhile_counts() -> None:
    async with on_host(small("a", 20), small("b", 20)) as (host, stage):
        await stage.ask("a")
        host.foreign = 5
        error = await stage.client("b").error()
        assert isinstance(error, NoRoom) and "1.0 GiB more than it can have" in str(error)
        assert stage.units.log[-2:] == ["stop a", "measure"]


async def test_nobody_is_refused_by_what_was_measured_before_it_asked() -> None:
    async with on_host(small("a", 20)) as (host, stage):
        host.foreign = 5
        for _ in range(2):
            assert isinstance(await stage.client("a").error(), NoRoom)
        host.foreign = 4
        await stage.ask("a")
        assert stage.units.log == ["measure", "measure", "measure", "start a"]


async def test_who_asks_while_it_is_measured_is_refused_by_the_next() -> None:
    async with on_host(small("a", 20)) as (host, stage):
        host.foreign = 5
        gate = host.gate = Gate()
        first = stage.client("a")
        await gate.reached.wait()
        second = stage.client("a")
        await stage.settle()
        gate.open()
        for client in (first, second):
            assert isinstance(await client.error(), NoRoom)
        assert stage.units.log == ["measure", "measure"]


@simulated
async def test_who_is_refused_again_and_again_holds_up_nobody() -> None:
    """One measurement takes longer than until the next one asks."""

    async def gauge() -> dict[int, Gpu]:
        await asyncio.sleep(0.2)
        return {0: Gpu(24 * GIB), 1: Gpu(24 * GIB)}

    clock = asyncio.get_running_loop().time
    async with on_stage(small("a", 25), replace(small("b", 8), gpus=(1,)), gauge=gauge) as stage:
        asked = [stage.client("a")]
        other = stage.client("b")
        begin = clock()
        while not other.admitted.is_set():
            await asyncio.sleep(0.1)
            asked.append(stage.client("a"))
            assert clock() - begin < 1.0
        for client in asked:
            assert isinstance(await client.error(), NoRoom)
        await other.finish()


@simulated
async def test_a_measurement_that_has_only_begun_refuses_nobody() -> None:
    """Preloading measures for itself, perhaps while a decision waits for an older one."""
    gates = [Gate(), Gate(), Gate()]
    sizes = iter((0, 24, 24))

    async def gauge() -> dict[int, Gpu]:
        size, gate = next(sizes), gates.pop(0)
        await gate.passed()
        return {0: Gpu(size * GIB)}

    old, new, last = gates
    a, d = small("a", 8), replace(small("d", 8), gpus=(1,), preload=True)
    async with on_stage(a, d, run=False, gauge=gauge) as stage:
        stage.run()
        stage.client("a")
        await old.reached.wait()
        await asyncio.sleep(1)
        second = stage.client("a")
        await asyncio.sleep(1)
        preloading = asyncio.create_task(stage.switcher._preloading.run())
        await new.reached.wait()
        old.open()
        await stage.settle()
        for gate in (new, last):
            gate.open()
        await second.admitted.wait()
        await preloading


async def test_one_that_died_made_room() -> None:
    async with on_host(small("a", 20), small("b", 20)) as (_, stage):
        await stage.ask("a")
        stage.units.die("a")
        await stage.ask("b")
        assert stage.units.log == ["measure", "start a", "measure", "start b"]


async def test_one_that_leaves_while_it_is_measured_is_measured_again() -> None:
    async with on_host(small("a", 12), small("b", 12), small("c", 12)) as (host, stage):
        await stage.ask("a")
        await stage.ask("b")
        stage.units.die("a")
        gate = host.gate = Gate()
        client = stage.client("c")
        await gate.reached.wait()
        stage.units.die("b")
        gate.open()
        await client.admitted.wait()
        assert stage.units.log[-3:] == ["measure", "measure", "start c"]
        await client.finish()


async def test_a_model_frozen_by_hand_is_in_the_way_and_is_named() -> None:
    async with on_host(small("a", 20), small("b", 20)) as (_, stage):
        await stage.ask("a")
        stage.units.by_hand("a", replace(UP, freezer="frozen"))
        error = await stage.client("b").error()
        assert isinstance(error, NoRoom) and "'a' (not in use) holds 20.0 GiB" in str(error)
        stage.units.by_hand("a", DOWN)
        await stage.ask("b")


async def test_where_nothing_can_be_measured_models_take_turns() -> None:
    async with on_host(small("a", 1), small("b", 1)) as (host, stage):
        host.known = False
        await stage.ask("a")
        await stage.ask("b")
        assert stage.units.log == ["measure", "start a", "stop a", "measure", "start b"]


async def test_who_comes_back_meets_who_leaves_where_what_is_free_holds_both() -> None:
    parking = [replace(a_model(name), tier=Tier.PARK) for name in ("a", "b")]
    async with on_host(*parking) as (host, stage):
        host.takes = 10
        for name in ("a", "b"):
            client = stage.client(name)
            await stage.until_state(name, State.STARTING)
            # What it takes is seen while it comes, and does not change any more.
            stage.switcher.measure(await host.measure())
            await client.admitted.wait()
            await client.finish()
        stage.units.log.clear()
        await stage.ask("a")
        await stage.until_idle()
        assert stage.units.log == ["measure", "reload a", "reload b"]
        host.foreign = 4
        stage.units.log.clear()
        await stage.ask("b")
        await stage.until_idle()
        assert stage.units.log == ["measure", "reload a", "reload b"]


async def test_preloading_knows_the_room() -> None:
    models = [replace(small(name, 12), preload=True) for name in ("a", "b", "c")]
    async with on_host(*models) as (_, stage):
        await stage.switcher.adopt()
        await stage.until(lambda: stage.serving() == ["a", "b"])
        await stage.settle()
        assert stage.serving() == ["a", "b"]
        assert "stop" not in " ".join(stage.units.log)


async def both_known(host: Host, stage: Stage) -> None:
    """b serves and a has left for it; what each takes was seen."""
    host.takes = 5
    for name in ("a", "b"):
        await stage.ask(name)
        stage.switcher.measure(await host.measure())
        await stage.until_idle()
    assert stage.switcher.state("a") is State.CHECKPOINTED
    stage.units.poises.clear()


@simulated
async def test_who_may_come_beside_another_is_made_ready_while_that_is_measured() -> None:
    async with on_host(a_model("a"), a_model("b")) as (host, stage):
        await both_known(host, stage)
        gate = host.gate = Gate()
        client = stage.client("a")
        await gate.reached.wait()
        await stage.settle()
        assert stage.units.poises == ["poise a"] and not client.admitted.is_set()
        gate.open()
        await client.finish()
        assert stage.units.poises[:2] == ["poise a", "lift a"]


@simulated
async def test_who_has_no_room_beside_another_after_all_is_made_ready_in_vain() -> None:
    async with on_host(a_model("a"), a_model("b")) as (host, stage):
        await both_known(host, stage)
        host.foreign = 18
        busy = stage.client("b")
        await busy.admitted.wait()
        client = stage.client("a")
        await stage.settle()
        assert stage.units.poises == ["poise a", "withdraw a"]
        await busy.finish()
        await client.finish()


@simulated
async def test_who_is_wanted_back_beside_another_is_made_ready_as_soon_as_it_is_gone() -> None:
    async with on_host(a_model("a"), a_model("b")) as (host, stage):
        await both_known(host, stage)
        host.takes = 10
        for name in ("a", "b", "a"):
            await stage.ask(name)
            stage.switcher.measure(await host.measure())
            await stage.until_idle()
        leaves = stage.units.hold("stop", "a")
        await stage.ask("b")
        await leaves.reached.wait()
        # Its memory is the first that it lets go of.
        stage.switcher.measure({0: Gpu(24 * GIB, held={"b": 10 * GIB})})
        client = stage.client("a")
        await stage.settle()
        stage.units.poises.clear()
        leaves.open()
        await client.finish()
        assert stage.units.poises[:2] == ["poise a", "lift a"]
