# SPDX-License-Identifier: MIT
"""Who comes after whom: the promise of a place, and who leaves once another one serves."""

import asyncio
import os
from dataclasses import replace

import pytest

from llmuxd import files
from llmuxd.config import Tier
from llmuxd.model.parking import Parked
from llmuxd.policy import Gpu
from llmuxd.state import State
from llmuxd.switcher import pauses
from llmuxd.switcher.succession import SETTLING

from .fake_units import a_model
from .scenarios import Event, Scenario, broken_rules
from .simulated import simulated
from .stage import on_stage

A, B, C = a_model("a"), a_model("b"), a_model("c")
PARKING = replace(A, tier=Tier.PARK, devices=())
GIB = 1 << 30


def events(*rows: tuple[float, str, str, int, float]) -> tuple[Event, ...]:
    return tuple(Event(*row) for row in rows)


# A place is promised to one, for as long as it is free


@simulated
async def test_a_cancelled_job_cuts_nobody_who_took_the_place() -> None:
    a, c = replace(A, max_wait=30), replace(C, priority=1, drain_timeout=0.3)
    async with on_stage(a, B, c) as stage:
        await stage.ask("b")
        gate = stage.units.hold("stop", "b")
        job = stage.switcher.switch("a")
        await gate.reached.wait()
        stream = stage.client("c")
        await stage.settle()
        gate.open()
        await stream.admitted.wait()
        stage.switcher.jobs.cancel(job.number)
        assert await stage.result(job) == "canceled" and not stage.switcher.jobs.all()
        await asyncio.sleep(100)
        assert not stream.cut


@pytest.mark.parametrize("kind", ["preload", "warmup"])
@simulated
async def test_a_cancelled_job_sends_nobody_away_who_took_the_place(kind: str) -> None:
    async with on_stage(replace(A, max_wait=30), B, replace(C, priority=1)) as stage:
        await stage.ask("b")
        gate = stage.units.hold("stop", "b")
        job = getattr(stage.switcher, kind)("a")
        await gate.reached.wait()
        stream = stage.client("c")
        await stage.settle()
        gate.open()
        await stream.admitted.wait()
        stage.switcher.jobs.cancel(job.number)
        await stage.result(job)
        await stream.finish()
        await asyncio.sleep(100)
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
        stage.switcher.jobs.cancel(job.number)
        await stage.result(job)
        await stage.ask("b")
        await asyncio.sleep(100)
        assert stage.switcher.state("b") is State.SERVING


@simulated
async def test_who_leaves_for_one_that_came_beside_it_is_promised_to_nobody_else() -> None:
    async with on_stage(PARKING, B, replace(C, max_wait=30)) as stage:
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
        stage.switcher.jobs.cancel(job.number)
        await stage.result(job)
        gate.open()
        await client.finish()
        await asyncio.sleep(100)
        assert stage.switcher.state("a") is State.SERVING and "start c" not in stage.units.log


@simulated
async def test_jobs_take_no_place_in_the_queue_of_requests() -> None:
    async with on_stage(replace(A, queue_limit=2), B) as stage:
        await stage.ask("b")
        gate = stage.units.hold("stop", "b")
        for number in range(2):
            job = stage.switcher.switch("a")
            if not number:
                await gate.reached.wait()
            await stage.settle()
            stage.switcher.jobs.cancel(job.number)
            await stage.result(job)
        client = stage.client("a")
        await stage.settle()
        gate.open()
        await client.finish()


@simulated
async def test_the_promise_is_not_for_one_that_comes_already() -> None:
    async def gauge() -> dict[int, Gpu]:
        return {0: Gpu(24 * GIB)}

    a, b = replace(A, vram=12 * GIB), replace(B, vram=12 * GIB)
    d = replace(a_model("d"), vram=8 * GIB)
    async with on_stage(a, b, d, gauge=gauge) as stage:
        stage.switcher.measure({0: Gpu(24 * GIB)})
        await stage.ask("b")
        coming = stage.units.hold("start", "d")
        client = stage.client("d")
        client.end.set()
        await coming.reached.wait()
        gate = stage.units.hold("stop", "b")
        job = stage.switcher.switch("a")
        await gate.reached.wait()
        stage.switcher.jobs.cancel(job.number)
        await stage.result(job)
        gate.open()
        coming.open()
        await client.task
        await asyncio.sleep(100)
        assert "start a" in stage.units.log


@simulated
async def test_the_promise_is_not_for_one_in_its_cool_down() -> None:
    async with on_stage(A, B, a_model("x")) as stage:
        stage.units.break_verb("start", "x")
        other = stage.client("x")
        await stage.until(lambda: stage.switcher.model("x").failures == 1)
        await stage.until_idle()
        await stage.ask("b")
        gate = stage.units.hold("stop", "b")
        job = stage.switcher.switch("a")
        await gate.reached.wait()
        stage.switcher.jobs.cancel(job.number)
        await stage.result(job)
        await other.leave()
        gate.open()
        await asyncio.sleep(100)
        assert "start a" in stage.units.log


# No two stay on one GPU


def test_who_would_not_leave_once_is_asked_again() -> None:
    rows = events(
        (0, "ask", "a", 0, 0.5),
        (4, "ask", "b", 0, 0.5),
        (4, "fail stop", "b", 1, 0),
        (4, "ask", "a", 0, 0.5),
        (60, "measure", "a", 0, 0),
    )
    assert broken_rules(Scenario((PARKING, B), False, 0.0, rows)) == []


def test_one_that_drained_already_leaves_though_llmuxd_ends() -> None:
    rows = events(
        (0, "ask", "a", 0, 0.5),
        (4, "ask", "b", 0, 0.5),
        (15, "ask", "b", 0, 45.0),
        (4, "switch", "c", 0, 0),
        (1, "slow", "a", 2, 10.0),
        (0, "ask", "a", 0, 0.5),
        (1, "restart", "a", 0, 0),
        (60, "measure", "a", 0, 0),
    )
    assert broken_rules(Scenario((replace(PARKING, priority=5), B, C), False, 0.0, rows)) == []


def test_a_wake_that_was_asked_for_and_not_begun_counts() -> None:
    rows = events(
        (0, "ask", "a", 0, 0.5),
        (4, "ask", "b", 0, 0.5),
        (60, "ask", "a", 0, 0.5),
        (0.3, "restart", "a", 0, 0),
    )
    assert broken_rules(Scenario((PARKING, B), False, 3.0, rows)) == []


@simulated
async def test_a_parked_model_wakes_on_the_gpu_that_it_has_whatever_the_file_says() -> None:
    async with on_stage(replace(A, tier=Tier.PARK), B) as stage:
        await stage.ask("a")
        stream = stage.client("b")
        await stream.admitted.wait()
        stage.reload(replace(a_model("a", 1), tier=Tier.PARK), B)
        waiting = stage.client("a")
        await asyncio.sleep(100)
        both = stage.switcher.state("a") is stage.switcher.state("b") is State.SERVING
        assert not (
            both and stage.switcher.model("a").held == stage.switcher.model("b").held == (0,)
        )
        await waiting.leave()


@simulated
async def test_a_pinned_model_is_not_sent_away_by_the_note() -> None:
    async with on_stage(PARKING, replace(B, pin=True), run=False) as stage:
        stage.units.up_by_hand("a")
        stage.units.up_by_hand("b")
        files.write_json(files.runtime_root() / "succession.json", {"b": ["a"]})
        await stage.switcher.adopt()
        running = asyncio.create_task(stage.switcher.run())
        await asyncio.sleep(100)
        state = stage.switcher.state("b")
        await stage.switcher.close()
        await running
        assert state is State.SERVING


@simulated
async def test_one_that_rests_again_sends_nobody_away() -> None:
    """Its wake had not begun when llmuxd ended, and the next one does not wait for it for ever."""
    async with on_stage(PARKING, B, run=False) as stage:
        stage.units.up_by_hand("a")
        stage.units.up_by_hand("b")
        Parked(whole=True).save("a")
        files.write_json(files.runtime_root() / "succession.json", {"b": ["a"]})
        await stage.switcher.adopt()
        running = asyncio.create_task(stage.switcher.run())
        await asyncio.sleep(SETTLING + 1)
        assert "succession.json" not in os.listdir(os.environ["RUNTIME_DIRECTORY"])
        assert stage.units.log == []
        await stage.switcher.close()
        await running
