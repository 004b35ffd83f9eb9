# SPDX-License-Identifier: MIT
"""A cancelled job leaves everything as if it had not begun, or as if it had ended."""

import asyncio
from collections.abc import Callable

import pytest

from llmuxd.jobs import Job
from llmuxd.state import State
from llmuxd.switcher import Switcher

from .fake_units import a_model
from .simulated import simulated
from .stage import Stage, on_stage

Begin = Callable[[Switcher, str], Job]

BEGIN: dict[str, Begin] = {
    "switch": Switcher.switch,
    "preload": Switcher.preload,
    "warmup": Switcher.warmup,
    "checkpoint": Switcher.checkpoint,
    "park": Switcher.park,
    "stop": Switcher.stop,
}
IN = ("switch", "preload", "warmup")
OUT = {"checkpoint": "stop", "park": "reload", "stop": "stop"}
# Where the model is when a job of this kind has ended.
END = {
    "switch": State.SERVING, "preload": State.SERVING, "warmup": State.CHECKPOINTED,
    "checkpoint": State.CHECKPOINTED, "park": State.PARKED, "stop": State.COLD,
}  # fmt: skip


async def goes_on(stage: Stage) -> None:
    """Nothing is under way or waits, and each model serves who asks."""
    await stage.until_idle()
    assert stage.switcher.jobs.all() == []
    models = [stage.switcher.model(name) for name in stage.switcher.names()]
    await stage.until(lambda: not any(model.waiters for model in models))
    for name in stage.switcher.names():
        await stage.ask(name)


@pytest.mark.parametrize("kind", BEGIN)
async def test_before_its_first_step_nothing_has_happened(kind: str) -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        await stage.ask("b" if kind in IN else "a")
        log = list(stage.units.log)
        job = BEGIN[kind](stage.switcher, "a")
        await stage.cancel(job)
        await stage.settle()
        assert stage.units.log == log
        await goes_on(stage)


@pytest.mark.parametrize("kind", IN)
async def test_while_another_one_drains_nothing_has_happened(kind: str) -> None:
    """The other one is called back, and its stream was never cut."""
    async with on_stage(a_model("a"), a_model("b")) as stage:
        client = stage.client("b")
        await client.admitted.wait()
        log = list(stage.units.log)
        job = BEGIN[kind](stage.switcher, "a")
        await stage.settle()
        await stage.cancel(job)
        await stage.ask("b")
        assert stage.switcher.state("b") is State.SERVING
        await client.finish()
        assert stage.units.log == log
        await goes_on(stage)


@pytest.mark.parametrize("kind", IN)
async def test_while_another_one_leaves_all_goes_on(kind: str) -> None:
    """Its place would stay empty otherwise."""
    async with on_stage(a_model("a"), a_model("b")) as stage:
        await stage.ask("b")
        gate = stage.units.hold("stop", "b")
        job = BEGIN[kind](stage.switcher, "a")
        await gate.reached.wait()
        await stage.cancel(job)
        gate.open()
        await stage.until_state("a", END[kind])
        moves = ["start b", "stop b", "start a", "stop a"]
        assert stage.units.log == moves[: 4 if kind == "warmup" else 3]
        await goes_on(stage)


async def test_one_that_nobody_leaves_for_does_not_go_on() -> None:
    """Another one is before it, and it is that one for whom the place is made."""
    async with on_stage(a_model("a"), a_model("b"), a_model("c")) as stage:
        await stage.ask("b")
        gate = stage.units.hold("stop", "b")
        client = stage.client("c")
        await gate.reached.wait()
        job = stage.switcher.switch("a")
        await stage.settle()
        await stage.cancel(job)
        gate.open()
        await client.finish()
        await stage.until_idle()
        assert stage.units.log == ["start b", "stop b", "start c"]
        await goes_on(stage)


@pytest.mark.parametrize("kind", IN)
async def test_while_it_starts_it_goes_on(kind: str) -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        gate = stage.units.hold("start", "a")
        job = BEGIN[kind](stage.switcher, "a")
        await gate.reached.wait()
        await stage.cancel(job)
        gate.open()
        await stage.until_state("a", END[kind])
        assert stage.units.log == ["start a", "stop a"][: 2 if kind == "warmup" else 1]
        await goes_on(stage)


@pytest.mark.parametrize("turns", range(4))
@simulated
async def test_a_warm_up_whose_model_has_just_come_goes_on(turns: int) -> None:
    async with on_stage(a_model("a")) as stage:
        job = stage.switcher.warmup("a")
        await stage.until(lambda: stage.switcher.model("a").backend is not None)
        for _ in range(turns):
            await asyncio.sleep(0)
        await stage.cancel(job)
        await asyncio.sleep(100)
        assert stage.switcher.state("a") is State.CHECKPOINTED


async def test_a_warm_up_that_drains_what_it_started_goes_on() -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        gate = stage.units.hold("start", "a")
        job = stage.switcher.warmup("a")
        client = stage.client("a")
        await gate.reached.wait()
        gate.open()
        await client.admitted.wait()
        await stage.until_state("a", State.DRAINING)
        await stage.cancel(job)
        await client.finish()
        await stage.until_state("a", State.CHECKPOINTED)
        await goes_on(stage)


async def test_a_warm_up_of_one_that_serves_is_cancelled_while_it_drains() -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        job = stage.switcher.warmup("a")
        await stage.until_state("a", State.DRAINING)
        await stage.cancel(job)
        await stage.ask("a")
        assert stage.units.log == ["start a"]
        await client.finish()
        await goes_on(stage)


@pytest.mark.parametrize("kind", OUT)
async def test_while_it_drains_nothing_has_happened(kind: str) -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        job = BEGIN[kind](stage.switcher, "a")
        await stage.until_state("a", State.DRAINING)
        await stage.cancel(job)
        await stage.ask("a")
        assert stage.switcher.state("a") is State.SERVING
        assert stage.units.log == ["start a"]
        await client.finish()
        await goes_on(stage)


@pytest.mark.parametrize("kind", [*OUT, "warmup"])
async def test_while_it_leaves_the_leaving_goes_on(kind: str) -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        if kind != "warmup":
            await stage.ask("a")
        gate = stage.units.hold(OUT.get(kind, "stop"), "a")
        job = BEGIN[kind](stage.switcher, "a")
        await gate.reached.wait()
        await stage.cancel(job)
        gate.open()
        await stage.until_state("a", END[kind])
        await goes_on(stage)
