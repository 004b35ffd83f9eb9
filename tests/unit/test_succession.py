# SPDX-License-Identifier: MIT
"""Who came in beside another one stays alone there, whatever happens meanwhile."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from llmuxd import files
from llmuxd.config import ModelConfig, Tier
from llmuxd.model.parking import Parked
from llmuxd.state import State
from llmuxd.switcher.succession import SETTLING

from .fake_units import a_model
from .scenarios import Event, Scenario, broken_rules
from .simulated import simulated
from .stage import Client, Stage, on_stage

A, B, C = a_model("a"), a_model("b"), a_model("c")
PARKING = replace(A, tier=Tier.PARK, devices=())
PARKING_C = replace(C, tier=Tier.PARK, devices=())


def events(*rows: tuple[float, str, str, int, float]) -> tuple[Event, ...]:
    return tuple(Event(*row) for row in rows)


@contextlib.asynccontextmanager
async def b_serves_and_a_is_parked() -> AsyncIterator[Stage]:
    """Both were asked, a first."""
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        yield stage


async def a_stream(stage: Stage, name: str) -> Client:
    """A request that lasts."""
    stream = stage.client(name)
    await stream.admitted.wait()
    return stream


@contextlib.asynccontextmanager
async def taken_over(*models: ModelConfig, rests: bool = False) -> AsyncIterator[Stage]:
    """Both serve, and llmuxd was killed; the note says that b leaves for a, which rests perhaps."""
    async with on_stage(*models, run=False) as stage:
        for name in "ab":
            stage.units.up_by_hand(name)
        if rests:
            Parked(whole=True).save("a")
        files.write_json(files.runtime_root() / "succession.json", {"b": ["a"]})
        await stage.take_over()
        yield stage


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
        await a_stream(stage, "b")
        stage.reload(replace(a_model("a", 1), tier=Tier.PARK), B)
        waiting = stage.client("a")
        await asyncio.sleep(100)
        both = stage.serving() == ["a", "b"]
        assert not (
            both and stage.switcher.model("a").held == stage.switcher.model("b").held == (0,)
        )
        await waiting.leave()


@simulated
async def test_a_pinned_model_is_not_sent_away_by_the_note() -> None:
    async with taken_over(PARKING, replace(B, pin=True)) as stage:
        await asyncio.sleep(100)
        assert stage.switcher.state("b") is State.SERVING


@simulated
async def test_one_that_rests_again_sends_nobody_away() -> None:
    """Its wake had not begun when llmuxd ended, and the next one does not wait for it for ever."""
    async with taken_over(PARKING, B, rests=True) as stage:
        await asyncio.sleep(SETTLING + 1)
        assert "succession.json" not in os.listdir(os.environ["RUNTIME_DIRECTORY"])
        assert stage.units.log == []


@pytest.mark.parametrize("kind", ["stop", "park", "checkpoint", "warmup"])
@simulated
async def test_a_cancelled_leaving_of_the_newcomer_leaves_one(kind: str) -> None:
    async with b_serves_and_a_is_parked() as stage:
        old = await a_stream(stage, "b")
        new = await a_stream(stage, "a")
        job = getattr(stage.switcher, kind)("a")
        await stage.settle()
        await stage.cancel(job)
        await new.finish()
        await old.finish()
        await asyncio.sleep(1000)
        assert stage.serving() == ["a"]


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
        assert len(stage.serving()) == 1


@pytest.mark.parametrize("how", ["job", "pin"])
@simulated
async def test_the_note_outlives_a_moment(how: str) -> None:
    async with b_serves_and_a_is_parked() as stage:
        stage.units.break_verb("stop", "b", times=1)
        stream = await a_stream(stage, "a")
        await stage.until(lambda: stage.switcher.model("b").last_error != "")
        await stage.until_idle()
        if how == "pin":
            stage.switcher.pin("b", True)
            await stage.settle()
            stage.switcher.pin("b", False)
        else:
            job = stage.switcher.stop("a")
            await stage.settle()
            await stage.cancel(job)
        await stream.finish()
        await asyncio.sleep(1000)
        assert len(stage.serving()) == 1


async def a_is_started_once(stage: Stage, stream: Client, client: Client) -> None:
    """While the stream of b runs: it came beside, or not at all."""
    await asyncio.sleep(5)
    log = list(stage.units.log)
    await stream.finish()
    await client.finish()
    assert log.count("start a") == 1


@pytest.mark.parametrize("how", ["switch", "reload"])
@simulated
async def test_what_did_not_wake_is_cold(how: str) -> None:
    async with b_serves_and_a_is_parked() as stage:
        stream = await a_stream(stage, "b")
        stage.units.break_verb("reload", "a", times=1)
        client = stage.client("a")
        await stage.until(lambda: stage.switcher.model("a").failures == 1)
        await stage.until_idle()
        if how == "switch":
            stage.switcher.switch("a")
        else:
            stage.reload(PARKING, B)
        await a_is_started_once(stage, stream, client)


@pytest.mark.parametrize("turns", [1, 2])
@simulated
async def test_one_that_died_parked_is_cold(turns: int) -> None:
    async with b_serves_and_a_is_parked() as stage:
        stream = await a_stream(stage, "b")
        client = stage.client("a")
        for _ in range(turns):
            await asyncio.sleep(0)
        stage.units.die("a")
        await a_is_started_once(stage, stream, client)
