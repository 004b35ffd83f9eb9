# SPDX-License-Identifier: MIT
"""Who is made ready to start while another leaves for it, and who is not any more."""

from dataclasses import replace

from llmuxd import files, hold
from llmuxd.config import Tier
from llmuxd.hold import Hold
from llmuxd.model.activation import RELEASED
from llmuxd.state import State, UnitStatus

from .fake_units import UP, Gate, a_model
from .simulated import simulated
from .stage import Client, Stage, on_stage

A, B, C = a_model("a"), a_model("b"), a_model("c")


async def leaves(stage: Stage, verb: str = "stop") -> Gate:
    """b serves, and leaves for a, which somebody waits for; with the gate open it is gone."""
    await stage.ask("b")
    gate = stage.units.hold(verb, "b")
    stage.client("a").end.set()
    await gate.reached.wait()
    await stage.settle()
    return gate


async def poised_once_it_leaves(stage: Stage, name: str, busy: Client) -> None:
    """Not while that model drains: a is, once the client that it serves has gone."""
    assert stage.switcher.state(name) is State.DRAINING and not stage.units.poises
    gate = stage.units.hold("stop", name)
    await busy.finish()
    await gate.reached.wait()
    await stage.settle()
    assert stage.units.poises == ["poise a"]
    gate.open()


@simulated
async def test_the_next_one_is_poised_while_the_old_one_leaves() -> None:
    async with on_stage(A, B) as stage:
        gate = await leaves(stage)
        assert stage.units.poises == ["poise a"]
        assert stage.switcher.state("a") is State.COLD
        gate.open()
        await stage.until_state("a", State.SERVING)
        assert stage.units.poises == ["poise a", "lift a"]


@simulated
async def test_one_that_is_wanted_back_is_poised_once_it_is_gone() -> None:
    """Before what it left is looked at, and its GPU measured."""
    async with on_stage(A, B) as stage:
        await stage.ask("b")
        gate = stage.units.hold("stop", "b")
        job = stage.switcher.checkpoint("b")
        await gate.reached.wait()
        client = stage.client("b")
        await stage.settle()
        assert not stage.units.poises
        gate.open()
        await stage.result(job)
        assert stage.units.poises[:1] == ["poise b"]
        await client.finish()
        assert stage.units.poises == ["poise b", "lift b"]


@simulated
async def test_it_is_not_where_its_place_may_be_another_ones() -> None:
    async with on_stage(A, B) as stage:
        gate = await leaves(stage)
        client = stage.client("b")
        await stage.settle()
        gate.open()
        await stage.until_state("a", State.SERVING)
        # Later it is, while a leaves for it.
        assert "poise b" not in stage.units.poises
        await client.finish()


@simulated
async def test_nor_where_that_begins_before_it_has_gone() -> None:
    async with on_stage(A, B) as stage:
        gate = await leaves(stage)
        comes = stage.units.hold("start", "a")
        client = stage.client("b")
        # Its helper has let go of the GPU, and is at work on the disk.
        stage.units.by_hand("b", replace(UP, text=RELEASED))
        await comes.reached.wait()
        gate.open()
        await stage.settle()
        assert stage.switcher.state("b") is State.CHECKPOINTED
        comes.open()
        await client.finish()
        assert "withdraw b" not in stage.units.poises


@simulated
async def test_nor_where_another_serves_there_and_there_is_no_room_for_both() -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        busy = stage.client("b")
        await busy.admitted.wait()
        # By hand, where there is room for one: it has b's place for a while.
        stage.units.up_by_hand("a")
        await stage.settle()
        gate = stage.units.hold("stop", "a")
        job = stage.switcher.stop("a")
        await gate.reached.wait()
        client = stage.client("a")
        await stage.settle()
        gate.open()
        await stage.result(job)
        assert "poise a" not in stage.units.poises
        await busy.finish()
        await client.finish()


@simulated
async def test_it_is_not_while_the_old_one_may_still_stay() -> None:
    async with on_stage(A, B) as stage:
        busy = stage.client("b")
        await busy.admitted.wait()
        stage.client("a").end.set()
        await stage.settle()
        await poised_once_it_leaves(stage, "b", busy)


@simulated
async def test_it_is_not_while_a_second_one_has_requests_still() -> None:
    a, b, c = (replace(m, gpus=g) for m, g in ((A, (0, 1)), (B, (0,)), (C, (1,))))
    async with on_stage(a, b, c) as stage:
        await stage.ask("b")
        busy = stage.client("c")
        await busy.admitted.wait()
        stage.client("a").end.set()
        await stage.until_state("b", State.CHECKPOINTED)
        await stage.settle()
        await poised_once_it_leaves(stage, "c", busy)


@simulated
async def test_what_a_llmuxd_that_was_killed_held_back_is_free_again() -> None:
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    Hold("a").drop()
    assert hold.remains("a")
    async with on_stage(A, B) as stage:
        await stage.switcher.adopt()
        assert not hold.remains("a")


@simulated
async def test_the_next_one_is_poised_while_the_old_one_is_parked() -> None:
    async with on_stage(A, replace(B, tier=Tier.PARK)) as stage:
        await leaves(stage, "reload")
        assert stage.units.poises == ["poise a"]


@simulated
async def test_one_that_is_parked_has_its_helper_already() -> None:
    a = replace(A, tier=Tier.PARK)
    async with on_stage(a, B) as stage:
        await stage.ask("a")
        await leaves(stage)
        assert stage.switcher.state("a") is State.PARKED
        assert "poise a" not in stage.units.poises


@simulated
async def test_one_that_is_another_unit_loads_nothing() -> None:
    async with on_stage(replace(A, unit="ollama.service"), B) as stage:
        await leaves(stage)
        assert not stage.units.poises


@simulated
async def test_one_that_failed_is_not_begun_before_its_time() -> None:
    async with on_stage(A, B) as stage:
        stage.units.by_hand("a", UnitStatus("failed", "failed", result="exit-code"))
        await leaves(stage)
        assert not stage.units.poises


@simulated
async def test_who_lost_the_place_is_taken_back_at_once() -> None:
    async with on_stage(A, B, replace(C, priority=1)) as stage:
        gate = await leaves(stage)
        stage.client("c").end.set()
        await stage.settle()
        assert stage.units.poises == ["poise a", "withdraw a", "poise c"]
        gate.open()
        await stage.until_state("a", State.SERVING)
        await stage.settle()
        assert stage.served == ["b", "c", "a"]


@simulated
async def test_who_is_waited_for_by_nobody_is_taken_back_at_once() -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("b")
        gate = stage.units.hold("stop", "b")
        client = stage.client("a")
        await gate.reached.wait()
        await stage.settle()
        assert stage.units.poises == ["poise a"]
        await client.leave()
        await stage.settle()
        assert stage.units.poises == ["poise a", "withdraw a"]
        gate.open()


@simulated
async def test_who_left_the_file_is_taken_back() -> None:
    async with on_stage(A, B) as stage:
        gate = await leaves(stage)
        stage.reload(B)
        await stage.settle()
        assert stage.units.poises == ["poise a", "withdraw a"]
        gate.open()
