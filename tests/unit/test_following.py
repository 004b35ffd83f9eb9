# SPDX-License-Identifier: MIT
"""A place is promised to one that others leave for; and what becomes of it where nobody comes."""

import asyncio
from dataclasses import replace

import pytest

from llmuxd.config import Tier
from llmuxd.jobs import Job
from llmuxd.policy import Gpu
from llmuxd.state import State
from llmuxd.switcher import pauses

from .fake_units import Gate, a_model
from .simulated import simulated
from .stage import Stage, on_stage

A, B, C = a_model("a"), a_model("b"), a_model("c")
GIB = 1 << 30
# On the second GPU, and on both.
D, A2 = a_model("d", 1), a_model("a", 0, 1)


async def b_leaves(stage: Stage, kind: str = "switch") -> tuple[Gate, Job]:
    """b served, and leaves for a job that wants a; with the gate open it is gone."""
    await stage.ask("b")
    gate = stage.units.hold("stop", "b")
    job = getattr(stage.switcher, kind)("a")
    await gate.reached.wait()
    return gate, job


async def b_leaves_for_a_cancelled_job(stage: Stage) -> Gate:
    """The same, and the job is cancelled: it is too late for that."""
    gate, job = await b_leaves(stage)
    await stage.cancel(job)
    return gate


async def at_last() -> None:
    """By then all has happened."""
    await asyncio.sleep(100)


# A place is promised to one, for as long as it is free


@simulated
async def test_a_cancelled_job_cuts_nobody_who_took_the_place() -> None:
    a, c = replace(A, max_wait=30), replace(C, priority=1, drain_timeout=0.3)
    async with on_stage(a, B, c) as stage:
        gate, job = await b_leaves(stage)
        stream = stage.client("c")
        await stage.settle()
        gate.open()
        await stream.admitted.wait()
        await stage.cancel(job)
        assert not stage.switcher.jobs.all()
        await at_last()
        assert not stream.cut


@pytest.mark.parametrize("kind", ["preload", "warmup"])
@simulated
async def test_a_cancelled_job_sends_nobody_away_who_took_the_place(kind: str) -> None:
    async with on_stage(replace(A, max_wait=30), B, replace(C, priority=1)) as stage:
        gate, job = await b_leaves(stage, kind)
        stream = stage.client("c")
        await stage.settle()
        gate.open()
        await stream.admitted.wait()
        await stage.cancel(job)
        await stream.finish()
        await at_last()
        assert stage.units.log == ["start b", "stop b", "start c"]


@simulated
async def test_a_cancelled_job_does_not_send_away_again_who_would_not_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pauses, "LEAVE_AGAIN", 0.5)
    async with on_stage(A, B) as stage:
        await stage.ask("b")
        stage.units.break_verb("stop", "b", times=1)
        job = stage.switcher.switch("a")
        await stage.until(lambda: stage.switcher.model("b").last_error != "")
        await stage.until_idle()
        await stage.cancel(job)
        await stage.ask("b")
        await at_last()
        assert stage.serving() == ["b"]


@simulated
async def test_who_leaves_for_one_that_came_beside_it_is_promised_to_nobody_else() -> None:
    a = replace(A, tier=Tier.PARK, devices=())
    async with on_stage(a, B, replace(C, max_wait=30)) as stage:
        await stage.ask("a")
        await stage.ask("b")
        stream = stage.client("b")
        await stream.admitted.wait()
        gate = stage.units.hold("stop", "b")
        client = stage.client("a")
        await client.admitted.wait()
        job = stage.switcher.switch("c")
        await stage.settle()
        await stream.finish()
        await gate.reached.wait()
        await stage.cancel(job)
        gate.open()
        await client.finish()
        await at_last()
        assert stage.serving() == ["a"] and "start c" not in stage.units.log


@simulated
async def test_jobs_take_no_place_in_the_queue_of_requests() -> None:
    async with on_stage(replace(A, queue_limit=2), B) as stage:
        gate = await b_leaves_for_a_cancelled_job(stage)
        another = stage.switcher.switch("a")
        await stage.settle()
        await stage.cancel(another)
        client = stage.client("a")
        await stage.settle()
        gate.open()
        await client.finish()


@simulated
async def test_the_promise_is_not_for_one_that_comes_already() -> None:
    async def gauge() -> dict[int, Gpu]:
        return {0: Gpu(24 * GIB)}

    a, b, d = (replace(m, vram=v * GIB) for m, v in ((A, 12), (B, 12), (a_model("d"), 8)))
    async with on_stage(a, b, d, gauge=gauge) as stage:
        stage.switcher.measure({0: Gpu(24 * GIB)})
        await stage.ask("b")
        coming = stage.units.hold("start", "d")
        client = stage.client("d")
        client.end.set()
        await coming.reached.wait()
        gate = await b_leaves_for_a_cancelled_job(stage)
        gate.open()
        coming.open()
        await client.task
        await at_last()
        assert "start a" in stage.units.log


@simulated
async def test_the_promise_is_not_for_one_in_its_cool_down() -> None:
    async with on_stage(A, B, a_model("x")) as stage:
        stage.units.break_verb("start", "x")
        other = stage.client("x")
        await stage.until(lambda: stage.switcher.model("x").failures == 1)
        await stage.until_idle()
        gate = await b_leaves_for_a_cancelled_job(stage)
        await other.leave()
        gate.open()
        await at_last()
        assert "start a" in stage.units.log


@simulated
async def test_one_whose_turn_came_back_is_promised_the_place_again() -> None:
    async with on_stage(A, B, replace(C, priority=1)) as stage:
        gate, job = await b_leaves(stage)
        visitor = stage.client("c")
        await stage.settle()
        await visitor.leave()
        await stage.settle()
        await stage.cancel(job)
        gate.open()
        await at_last()
        assert stage.serving() == ["a"]


# What a cancelled job left behind is in nobody's way


@simulated
async def test_a_cancelled_warm_up_leaves_what_comes_for_a_client() -> None:
    async with on_stage(replace(A, drain_timeout=5), B) as stage:
        gate = stage.units.hold("start", "a")
        stream = stage.client("a")
        await gate.reached.wait()
        job = stage.switcher.warmup("a")
        await stage.settle()
        await stage.cancel(job)
        gate.open()
        await stream.admitted.wait()
        await at_last()
        assert not stream.cut and stage.serving() == ["a"]


@simulated
async def test_a_client_that_comes_after_the_cancel_keeps_the_model() -> None:
    async with on_stage(replace(A, drain_timeout=5), B) as stage:
        gate = stage.units.hold("start", "a")
        job = stage.switcher.warmup("a")
        await gate.reached.wait()
        await stage.cancel(job)
        stream = stage.client("a")
        await stage.settle()
        gate.open()
        await stream.admitted.wait()
        await at_last()
        assert not stream.cut and stage.serving() == ["a"]


@simulated
async def test_a_cancelled_job_sends_no_further_one_away() -> None:
    a, b, e = (replace(m, vram=v * GIB) for m, v in ((A, 12), (B, 12), (a_model("e"), 8)))
    async with on_stage(a, b, e) as stage:
        stage.switcher.measure({0: Gpu(24 * GIB)})
        await stage.ask("b")
        await stage.ask("e")
        await asyncio.sleep(1)
        await stage.ask("e")
        gate = await b_leaves_for_a_cancelled_job(stage)
        stage.switcher.measure({0: Gpu(24 * GIB, 6 * GIB)})
        gate.open()
        await at_last()
        assert "stop e" not in stage.units.log


@simulated
async def test_a_cancelled_job_does_not_follow_the_file_to_another_gpu() -> None:
    d = replace(D, drain_timeout=5)
    async with on_stage(A, B, d) as stage:
        stream = stage.client("d")
        await stream.admitted.wait()
        await b_leaves_for_a_cancelled_job(stage)
        stage.reload(a_model("a", 1), B, d)
        await at_last()
        assert not stream.cut


@pytest.mark.parametrize("other", ["nobody", "a client", "a preload"])
@simulated
async def test_a_cancelled_job_cuts_no_stream_on_its_second_gpu(other: str) -> None:
    """Whoever else waits by then: an operator alone may cut."""
    async with on_stage(A2, B, replace(D, drain_timeout=20)) as stage:
        await stage.ask("b")
        stream = stage.client("d")
        await stream.admitted.wait()
        await asyncio.sleep(1)
        gate = await b_leaves_for_a_cancelled_job(stage)
        if other == "a client":
            stage.client("a")
        if other == "a preload":
            stage.switcher.preload("a")
        gate.open()
        await at_last()
        assert not stream.cut


@simulated
async def test_a_stop_ends_what_a_cancelled_job_left() -> None:
    async with on_stage(A, B) as stage:
        gate = await b_leaves_for_a_cancelled_job(stage)
        assert await stage.result(stage.switcher.stop("a")) == "done"
        gate.open()
        await at_last()
        assert "start a" not in stage.units.log


# No place stays empty, for which somebody left


@simulated
async def test_nobody_leaves_before_all_can_who_have_to() -> None:
    """Its place would be empty, and for nothing where the job is cancelled."""
    async with on_stage(A2, B, D) as stage:
        await stage.ask("b")
        coming = stage.units.hold("start", "d")
        other = stage.client("d")
        await coming.reached.wait()
        job = stage.switcher.switch("a")
        await asyncio.sleep(10)
        assert stage.serving() == ["b"]
        coming.open()
        await other.finish()
        assert await stage.result(job) == "done"
        assert stage.units.log[-3:] in (
            ["stop b", "stop d", "start a"], ["stop d", "stop b", "start a"]
        )  # fmt: skip


async def b_has_left_and_d_stops(stage: Stage, kind: str = "switch") -> tuple[Gate, Job]:
    """Both served, and a, which needs both their places, is wanted; d's stop will fail."""
    await stage.ask("b")
    await stage.ask("d")
    gate = stage.units.hold("stop", "d")
    stage.units.break_verb("stop", "d")
    job = getattr(stage.switcher, kind)("a")
    await gate.reached.wait()
    await stage.until_state("b", State.CHECKPOINTED)
    return gate, job


@pytest.mark.parametrize("kind", ["switch", "preload", "warmup"])
@pytest.mark.parametrize("when", ["before the stop fails", "after that"])
@simulated
async def test_who_left_for_a_cancelled_job_comes_back_where_another_would_not_stop(
    kind: str, when: str
) -> None:
    async with on_stage(A2, B, D) as stage:
        gate, job = await b_has_left_and_d_stops(stage, kind)
        if when == "after that":
            gate.open()
            await stage.until_state("d", State.SERVING)
        await stage.cancel(job)
        gate.open()
        await at_last()
        assert stage.serving() == ["b", "d"]
        assert stage.units.log[-2:] == ["stop d", "start b"]


@simulated
async def test_so_does_one_that_is_still_on_its_way_out() -> None:
    async with on_stage(A2, B, D) as stage:
        await stage.ask("d")
        stage.units.break_verb("stop", "d")
        gate = await b_leaves_for_a_cancelled_job(stage)
        await stage.settle()
        gate.open()
        await at_last()
        assert stage.serving() == ["b", "d"]


@simulated
async def test_so_does_one_that_left_for_what_does_not_start() -> None:
    async with on_stage(A, B) as stage:
        stage.units.break_verb("start", "a")
        gate = await b_leaves_for_a_cancelled_job(stage)
        gate.open()
        await at_last()
        assert stage.serving() == ["b"]


@simulated
async def test_its_place_is_for_who_asks_first() -> None:
    async with on_stage(A2, B, C, D) as stage:
        gate, job = await b_has_left_and_d_stops(stage)
        client = stage.client("c")
        await stage.settle()
        await stage.cancel(job)
        gate.open()
        await client.finish()
        await at_last()
        assert stage.serving() == ["c", "d"]


@simulated
async def test_one_that_an_operator_stops_stays_out() -> None:
    async with on_stage(A2, B, D) as stage:
        gate, job = await b_has_left_and_d_stops(stage)
        await stage.cancel(job)
        assert await stage.result(stage.switcher.stop("b")) == "done"
        gate.open()
        await at_last()
        assert stage.serving() == ["d"]


@simulated
async def test_nobody_comes_back_while_somebody_waits_for_its_place() -> None:
    async with on_stage(A, B) as stage:
        stage.units.break_verb("start", "a", times=1)
        gate, job = await b_leaves(stage)
        client = stage.client("a")
        gate.open()
        await stage.until(lambda: stage.switcher.model("a").failures == 1)
        await stage.until_idle()
        await stage.cancel(job)
        await client.finish()
        assert stage.units.log == ["start b", "stop b", "start a", "start a"]


@simulated
async def test_nobody_comes_back_for_a_client_that_left() -> None:
    """Nor for a later job: what that made leave is another matter."""
    async with on_stage(A2, B, D) as stage:
        await stage.ask("b")
        await stage.ask("d")
        stage.units.break_verb("stop", "d")
        client = stage.client("a")
        await stage.until_state("b", State.CHECKPOINTED)
        await client.leave()
        await at_last()
        job = stage.switcher.switch("a")
        await asyncio.sleep(1)
        await stage.cancel(job)
        await at_last()
        assert stage.serving() == ["d"]
