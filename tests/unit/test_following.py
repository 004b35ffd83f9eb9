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
from .stage import Stage, on_stage

A, B, C = a_model("a"), a_model("b"), a_model("c")
PARKING = replace(A, tier=Tier.PARK, devices=())
PARKING_C = replace(C, tier=Tier.PARK, devices=())
GIB = 1 << 30


def serving(stage: Stage) -> list[str]:
    return [n for n in stage.switcher.names() if stage.switcher.state(n) is State.SERVING]


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


@pytest.mark.parametrize("kind", ["stop", "park", "checkpoint", "warmup"])
@simulated
async def test_a_cancelled_leaving_of_the_newcomer_leaves_one(kind: str) -> None:
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        old = stage.client("b")
        await old.admitted.wait()
        new = stage.client("a")
        await new.admitted.wait()
        job = getattr(stage.switcher, kind)("a")
        await stage.settle()
        stage.switcher.jobs.cancel(job.number)
        assert await stage.result(job) == "canceled"
        await new.finish()
        await old.finish()
        await asyncio.sleep(1000)
        assert serving(stage) == ["a"]


@simulated
async def test_a_newcomer_that_fails_does_not_take_the_note_of_another_along() -> None:
    async with on_stage(PARKING, B, PARKING_C) as stage:
        for name in "acb":
            await stage.ask(name)
        gate = stage.units.hold("reload", "a")
        first = stage.client("a")
        await gate.reached.wait()
        second = stage.client("c")
        await stage.settle()
        stage.units.break_verb("reload", "a", times=1)
        gate.open()
        await second.admitted.wait()
        await first.leave()
        await second.finish()
        await asyncio.sleep(1000)
        assert len(serving(stage)) == 1


@pytest.mark.parametrize("how", ["job", "pin"])
@simulated
async def test_the_note_outlives_a_moment(how: str) -> None:
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        stage.units.break_verb("stop", "b", times=1)
        stream = stage.client("a")
        await stream.admitted.wait()
        await stage.until(lambda: stage.switcher.model("b").last_error != "")
        await stage.until_idle()
        if how == "pin":
            stage.switcher.pin("b", True)
            await stage.settle()
            stage.switcher.pin("b", False)
        else:
            job = stage.switcher.stop("a")
            await stage.settle()
            stage.switcher.jobs.cancel(job.number)
            await stage.result(job)
        await stream.finish()
        await asyncio.sleep(1000)
        assert len(serving(stage)) == 1


@pytest.mark.parametrize("how", ["switch", "reload"])
@simulated
async def test_what_did_not_wake_is_cold(how: str) -> None:
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        stream = stage.client("b")
        await stream.admitted.wait()
        stage.units.break_verb("reload", "a", times=1)
        client = stage.client("a")
        await stage.until(lambda: stage.switcher.model("a").failures == 1)
        await stage.until_idle()
        if how == "switch":
            stage.switcher.switch("a")
        else:
            stage.reload(PARKING, B)
        await asyncio.sleep(5)
        log = list(stage.units.log)
        await stream.finish()
        await client.finish()
        assert log.count("start a") == 1


@pytest.mark.parametrize("turns", [1, 2])
@simulated
async def test_one_that_died_parked_is_cold(turns: int) -> None:
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        stream = stage.client("b")
        await stream.admitted.wait()
        client = stage.client("a")
        for _ in range(turns):
            await asyncio.sleep(0)
        stage.units.die("a")
        await asyncio.sleep(5)
        log = list(stage.units.log)
        await stream.finish()
        await client.finish()
        assert log.count("start a") == 1


# What a cancelled job left behind is in nobody's way


@simulated
async def test_a_cancelled_warm_up_leaves_what_comes_for_a_client() -> None:
    async with on_stage(replace(A, drain_timeout=5), B) as stage:
        gate = stage.units.hold("start", "a")
        stream = stage.client("a")
        await gate.reached.wait()
        job = stage.switcher.warmup("a")
        await stage.settle()
        stage.switcher.jobs.cancel(job.number)
        assert await stage.result(job) == "canceled"
        gate.open()
        await stream.admitted.wait()
        await asyncio.sleep(100)
        assert not stream.cut and stage.switcher.state("a") is State.SERVING


@simulated
async def test_a_client_that_comes_after_the_cancel_keeps_the_model() -> None:
    async with on_stage(replace(A, drain_timeout=5), B) as stage:
        gate = stage.units.hold("start", "a")
        job = stage.switcher.warmup("a")
        await gate.reached.wait()
        stage.switcher.jobs.cancel(job.number)
        assert await stage.result(job) == "canceled"
        stream = stage.client("a")
        await stage.settle()
        gate.open()
        await stream.admitted.wait()
        await asyncio.sleep(100)
        assert not stream.cut and stage.switcher.state("a") is State.SERVING


@simulated
async def test_a_cancelled_job_sends_no_further_one_away() -> None:
    a, b, e = (replace(m, vram=v * GIB) for m, v in ((A, 12), (B, 12), (a_model("e"), 8)))
    async with on_stage(a, b, e) as stage:
        stage.switcher.measure({0: Gpu(24 * GIB)})
        await stage.ask("b")
        await stage.ask("e")
        await asyncio.sleep(1)
        await stage.ask("e")
        gate = stage.units.hold("stop", "b")
        job = stage.switcher.switch("a")
        await gate.reached.wait()
        stage.switcher.jobs.cancel(job.number)
        await stage.result(job)
        stage.switcher.measure({0: Gpu(24 * GIB, 6 * GIB)})
        gate.open()
        await asyncio.sleep(100)
        assert "stop e" not in stage.units.log


@simulated
async def test_a_cancelled_job_does_not_follow_the_file_to_another_gpu() -> None:
    d = replace(a_model("d", 1), drain_timeout=5)
    async with on_stage(A, B, d) as stage:
        await stage.ask("b")
        stream = stage.client("d")
        await stream.admitted.wait()
        gate = stage.units.hold("stop", "b")
        job = stage.switcher.switch("a")
        await gate.reached.wait()
        stage.switcher.jobs.cancel(job.number)
        await stage.result(job)
        stage.reload(a_model("a", 1), B, d)
        await asyncio.sleep(100)
        assert not stream.cut


@simulated
async def test_a_cancelled_job_cuts_no_stream_on_its_second_gpu() -> None:
    d = replace(a_model("d", 1), drain_timeout=20)
    async with on_stage(a_model("a", 0, 1), B, d) as stage:
        await stage.ask("b")
        stream = stage.client("d")
        await stream.admitted.wait()
        await asyncio.sleep(1)
        gate = stage.units.hold("stop", "b")
        job = stage.switcher.switch("a")
        await gate.reached.wait()
        stage.switcher.jobs.cancel(job.number)
        await stage.result(job)
        gate.open()
        await asyncio.sleep(100)
        assert not stream.cut


@simulated
async def test_one_whose_turn_came_back_is_promised_the_place_again() -> None:
    async with on_stage(A, B, replace(C, priority=1)) as stage:
        await stage.ask("b")
        gate = stage.units.hold("stop", "b")
        job = stage.switcher.switch("a")
        await gate.reached.wait()
        visitor = stage.client("c")
        await stage.settle()
        await visitor.leave()
        await stage.settle()
        stage.switcher.jobs.cancel(job.number)
        await stage.result(job)
        gate.open()
        await asyncio.sleep(100)
        assert serving(stage) == ["a"]


@simulated
async def test_a_stop_ends_what_a_cancelled_job_left() -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("b")
        gate = stage.units.hold("stop", "b")
        job = stage.switcher.switch("a")
        await gate.reached.wait()
        stage.switcher.jobs.cancel(job.number)
        await stage.result(job)
        assert await stage.result(stage.switcher.stop("a")) == "done"
        gate.open()
        await asyncio.sleep(100)
        assert "start a" not in stage.units.log


@simulated
async def test_nobody_leaves_before_all_can_who_have_to() -> None:
    """Its place would be empty, and for nothing where the job is cancelled."""
    async with on_stage(a_model("a", 0, 1), B, a_model("d", 1)) as stage:
        await stage.ask("b")
        coming = stage.units.hold("start", "d")
        other = stage.client("d")
        await coming.reached.wait()
        job = stage.switcher.switch("a")
        await asyncio.sleep(10)
        assert serving(stage) == ["b"]
        coming.open()
        await other.finish()
        assert await stage.result(job) == "done"
        assert stage.units.log[-3:] in (
            ["stop b", "stop d", "start a"], ["stop d", "stop b", "start a"]
        )  # fmt: skip
