# SPDX-License-Identifier: MIT
"""What the configuration promises of a model's place, on a simulated clock."""

import asyncio
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmuxd.config import ModelConfig, Tier
from llmuxd.costs import Cost
from llmuxd.errors import NoRoom, QueueFull, TimedOut
from llmuxd.policy import Gpu
from llmuxd.state import State

from .fake_units import a_model
from .simulated import simulated
from .stage import Client, Stage, on_stage

GIB = 1 << 30
A, B, C = a_model("a"), a_model("b"), a_model("c")


def small(name: str, gib: int, **more: object) -> ModelConfig:
    return replace(a_model(name), vram=gib * GIB, **more)  # type: ignore[arg-type]


async def keep_busy(stage: Stage, name: str, seconds: float = 1.0) -> None:
    """One request after the other, the next before the last has ended."""
    clients: list[Client] = []
    try:
        while True:
            clients.append(stage.client(name))
            await asyncio.sleep(seconds)
            for client in clients[:-2]:
                client.end.set()
    finally:
        for client in clients:
            client.end.set()


# Room


@simulated
async def test_models_that_fit_together_stay_together() -> None:
    async with on_stage(small("a", 10), small("b", 10), small("c", 10)) as stage:
        stage.switcher.measure({0: Gpu(24 * GIB)})
        await stage.ask("a")
        await stage.ask("b")
        assert stage.units.log == ["start a", "start b"]
        await stage.ask("c")
        assert stage.units.log[2:] == ["stop a", "start c"]
        assert stage.switcher.state("b") is State.SERVING


@simulated
async def test_the_idle_one_leaves_before_the_busy_one() -> None:
    async with on_stage(small("a", 10), small("b", 10), small("c", 10)) as stage:
        stage.switcher.measure({0: Gpu(24 * GIB)})
        busy = stage.client("a")
        await busy.admitted.wait()
        await stage.ask("b")
        await stage.ask("c")
        assert stage.units.log[2:] == ["stop b", "start c"]
        await busy.finish()


@simulated
async def test_without_a_measured_gpu_models_take_turns() -> None:
    async with on_stage(small("a", 1), small("b", 1)) as stage:
        await stage.ask("a")
        await stage.ask("b")
        assert stage.units.log == ["start a", "stop a", "start b"]


@simulated
async def test_what_others_hold_on_the_gpu_is_told() -> None:
    async with on_stage(small("a", 20)) as stage:
        stage.switcher.measure({0: Gpu(24 * GIB, foreign=6 * GIB)})
        error = await stage.client("a").error()
        assert isinstance(error, NoRoom)
        assert "'a' needs 20.0 GiB of GPU 0, 2.0 GiB more than it can have" in str(error)
        assert "processes that are no model hold 6.0 GiB" in str(error)
        assert stage.units.log == []
        stage.switcher.measure({0: Gpu(24 * GIB)})
        await stage.ask("a")


@simulated
async def test_a_job_is_refused_like_a_request_where_there_is_no_room() -> None:
    async with on_stage(small("a", 30)) as stage:
        stage.switcher.measure({0: Gpu(24 * GIB)})
        job = stage.switcher.switch("a")
        assert await stage.result(job) == "failed"
        assert isinstance(job.error, NoRoom) and "larger than the GPU" in str(job.error)


# Pins, priorities


@simulated
async def test_a_pinned_model_never_leaves_for_another() -> None:
    async with on_stage(replace(A, pin=True), B) as stage:
        await stage.ask("a")
        error = await stage.client("b").error()
        assert isinstance(error, NoRoom) and "'a' (pinned) holds all" in str(error)
        assert stage.units.log == ["start a"]


@simulated
async def test_a_pin_can_be_set_and_taken_off() -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("a")
        stage.switcher.pin("a", True)
        assert isinstance(await stage.client("b").error(), NoRoom)
        stage.switcher.pin("a", False)
        await stage.ask("b")


@simulated
async def test_an_operator_may_stop_a_pinned_model() -> None:
    async with on_stage(replace(A, pin=True)) as stage:
        await stage.ask("a")
        assert await stage.result(stage.switcher.stop("a")) == "done"


@simulated
async def test_the_higher_priority_gets_its_turn_first() -> None:
    async with on_stage(A, B, replace(C, priority=1)) as stage:
        gate = stage.units.hold("start", "a")
        clients = [stage.client("a")]
        await gate.reached.wait()
        clients += [stage.client("b"), stage.client("c")]
        for client in clients:
            client.end.set()
        gate.open()
        await asyncio.gather(*(client.task for client in clients))
        assert stage.served == ["a", "c", "b"]


@pytest.mark.parametrize("other", ["a preload before", "a preload after", "one that left"])
@simulated
async def test_nobody_waits_with_the_priority_of_who_does_not(other: str) -> None:
    async with on_stage(A, B, C) as stage:
        stream = stage.client("b")
        await stream.admitted.wait()
        if other == "a preload before":
            stage.switcher.preload("a")
            await stage.settle()
        clients = [stage.client("a", priority=-5)]
        if other == "a preload after":
            await stage.settle()
            stage.switcher.preload("a")
        if other == "one that left":
            urgent = stage.client("a", priority=5)
            await stage.settle()
            await urgent.leave()
        await stage.settle()
        clients.append(stage.client("c"))
        for client in (stream, *clients):
            client.end.set()
        await asyncio.gather(*(client.task for client in clients))
        assert stage.served == ["b", "c", "a"]


# Time


@simulated
async def test_no_request_waits_longer_than_it_may_however_busy_the_other_is() -> None:
    async with on_stage(replace(A, priority=5), replace(B, max_wait=30.0)) as stage:
        busy = asyncio.create_task(keep_busy(stage, "a"))
        await stage.until_state("a", State.SERVING)
        begin = asyncio.get_running_loop().time()
        await stage.client("b").admitted.wait()
        waited = asyncio.get_running_loop().time() - begin
        busy.cancel()
        # The drain of what is in flight takes two seconds more.
        assert 25.0 <= waited <= 33.0


@simulated
async def test_a_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle([0.0, 4e9, 1.0, -3e6])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    async with on_stage(replace(A, ttl=300.0), replace(B, max_wait=30.0)) as stage:
        busy = asyncio.create_task(keep_busy(stage, "a"))
        await stage.until_state("a", State.SERVING)
        begin = asyncio.get_running_loop().time()
        await stage.client("b").admitted.wait()
        assert asyncio.get_running_loop().time() - begin <= 33.0
        busy.cancel()


@simulated
async def test_a_model_keeps_its_place_for_as_long_as_it_was_promised() -> None:
    async with on_stage(replace(A, min_active=60.0), B) as stage:
        await stage.ask("a")
        begin = asyncio.get_running_loop().time()
        await stage.ask("b")
        assert 59.0 <= asyncio.get_running_loop().time() - begin <= 61.0


@simulated
async def test_an_idle_model_leaves_when_its_time_is_over() -> None:
    async with on_stage(replace(A, ttl=300.0)) as stage:
        await stage.ask("a")
        await asyncio.sleep(200)
        await stage.ask("a")
        await asyncio.sleep(299)
        assert stage.switcher.state("a") is State.SERVING
        await asyncio.sleep(2)
        assert stage.switcher.state("a") is State.CHECKPOINTED


@simulated
async def test_a_request_that_runs_keeps_its_model_past_its_time() -> None:
    async with on_stage(replace(A, ttl=3.0)) as stage:
        client = stage.client("a")
        await asyncio.sleep(100)
        assert stage.switcher.state("a") is State.SERVING
        await client.finish()
        await asyncio.sleep(4)
        assert stage.switcher.state("a") is State.CHECKPOINTED


@simulated
async def test_the_time_of_a_request_runs_out_in_the_queue() -> None:
    async with on_stage(A, replace(B, request_timeout=20.0)) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        error = await stage.client("b").error()
        assert isinstance(error, TimedOut) and "'b' did not serve within 20 s" in str(error)
        await client.finish()
        await stage.settle()
        assert stage.units.log == ["start a"], "nobody waits for b any more"
        assert stage.switcher.queue_length() == 0


@simulated
async def test_a_full_queue_refuses_at_once_and_lets_in_again() -> None:
    async with on_stage(replace(A, queue_limit=2), B) as stage:
        gate = stage.units.hold("start", "a")
        clients = [stage.client("a") for _ in range(2)]
        await gate.reached.wait()
        error = await stage.client("a").error()
        assert isinstance(error, QueueFull) and error.retry_after
        assert "2 requests wait for 'a' already" in str(error)
        await clients[0].leave()
        clients.append(stage.client("a"))
        gate.open()
        for client in clients[1:]:
            await client.admitted.wait()
        assert stage.switcher.queue_length() == 0


@simulated
async def test_the_queue_of_all_models_has_a_limit() -> None:
    async with on_stage(A, B) as stage:
        stage.switcher.reload(replace(stage.config, queue_limit=2))
        gate = stage.units.hold("start", "a")
        clients = [stage.client("a"), stage.client("b")]
        await gate.reached.wait()
        assert isinstance(await stage.client("b").error(), QueueFull)
        assert stage.switcher.switch("b"), "an operator is no request"
        gate.open()
        await clients[0].admitted.wait()
        assert stage.switcher.queue_length() == 1


# Operators


@simulated
async def test_a_command_waits_for_what_runs_and_no_longer_than_it_has_to() -> None:
    async with on_stage(replace(A, drain_timeout=30.0)) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        backend = stage.switcher.model("a").backend
        begin = asyncio.get_running_loop().time()
        job = stage.switcher.stop("a")
        await until_cut(client)
        assert 29 <= asyncio.get_running_loop().time() - begin <= 31
        await client.finish()
        assert await stage.result(job) == "done"
        assert backend is not stage.switcher.model("a").backend


@simulated
async def test_a_switch_that_an_operator_wants_may_cut_too() -> None:
    async with on_stage(replace(A, drain_timeout=30.0), B) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        job = stage.switcher.switch("b")
        await until_cut(client)
        await client.finish()
        assert await stage.result(job) == "done"


@simulated
async def test_nothing_is_ever_cut_for_another_client() -> None:
    async with on_stage(replace(A, drain_timeout=30.0), replace(B, max_wait=1.0)) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        other = stage.client("b")
        await asyncio.sleep(1000)
        assert not client.cut and stage.switcher.state("a") is State.DRAINING
        await client.finish()
        await other.admitted.wait()


@simulated
async def test_nothing_is_cut_for_what_comes_beside_it() -> None:
    parking = replace(A, tier=Tier.PARK, devices=())
    async with on_stage(parking, replace(B, drain_timeout=5.0)) as stage:
        await stage.ask("a")
        await stage.ask("b")
        stream = stage.client("b")
        await stream.admitted.wait()
        stage.units.takes["reload a"] = 20.0
        assert await stage.result(stage.switcher.switch("a")) == "done"
        await asyncio.sleep(100)
        assert not stream.cut


@simulated
async def test_without_a_limit_a_command_cuts_nothing() -> None:
    async with on_stage(A) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        job = stage.switcher.stop("a")
        await asyncio.sleep(100_000)
        assert not client.cut
        await client.finish()
        assert await stage.result(job) == "done"


async def until_cut(client: Client) -> None:
    # Nobody tells, and time costs nothing here.
    while not client.cut:  # noqa: ASYNC110
        await asyncio.sleep(1)


# Preloading


@simulated
async def test_preloaded_models_come_in_with_llmuxd() -> None:
    async with on_stage(a_model("z", 1), preloaded("a", 0), preloaded("b", 1)) as stage:
        await stage.switcher.adopt()
        await stage.until_state("b", State.SERVING)
        assert stage.units.log == ["start a", "start b"], "one after the other"
        await stage.switcher.adopt()
        await stage.settle()
        assert stage.units.log == ["start a", "start b"], "only when llmuxd starts"


@simulated
async def test_preloading_sends_nobody_away() -> None:
    async with on_stage(preloaded("a", 0), preloaded("b", 0)) as stage:
        await stage.switcher.adopt()
        await asyncio.sleep(1000)
        assert stage.units.log == ["start a"]


@simulated
async def test_a_preload_waits_until_nobody_is_at_work() -> None:
    async with on_stage(replace(A, max_wait=1.0), B, C) as stage:
        client = stage.client("b")
        await client.admitted.wait()
        job = stage.switcher.preload("a")
        await asyncio.sleep(100)
        assert stage.switcher.state("b") is State.SERVING
        other = stage.client("c")
        await client.finish()
        await other.admitted.wait()
        assert "start a" not in stage.units.log, "a request goes before"
        await other.finish()
        assert await stage.result(job) == "done"
        assert stage.units.log == ["start b", "stop b", "start c", "stop c", "start a"]


@simulated
async def test_a_request_makes_a_preload_urgent() -> None:
    async with on_stage(A, replace(B, max_wait=10.0)) as stage:
        busy = asyncio.create_task(keep_busy(stage, "a"))
        await stage.until_state("a", State.SERVING)
        job = stage.switcher.preload("b")
        await asyncio.sleep(100)
        assert "stop a" not in stage.units.log
        await stage.client("b").admitted.wait()
        busy.cancel()
        assert await stage.result(job) == "done"


def preloaded(name: str, gpu: int) -> ModelConfig:
    return replace(a_model(name, gpu), preload=True)


# Costs


@simulated
async def test_costs_are_learnt_and_kept(directories: Path) -> None:
    async with on_stage(A, B) as stage:
        stage.units.takes["start a"], stage.units.takes["stop a"] = 40.0, 3.0
        client = stage.client("a")
        await client.admitted.wait()
        await asyncio.sleep(6)
        other = stage.client("b")
        await stage.until_state("a", State.DRAINING)
        await asyncio.sleep(2)
        await client.finish()
        await other.finish()
    written = json.loads((directories / "state" / "costs.json").read_text())
    assert written["version"] == 1
    assert written["models"]["a"] == {"cold": [40.0], "drain": [2.0], "out": [3.0]}
    async with on_stage(A, B) as stage:
        # Before it is told to the bus, which is after this.
        await stage.switcher.adopt()
        assert stage.switcher.costs("a")["cold"] == 40.0
        stage.switcher._book.learn("a", Cost.COLD, 50.0)
        # The bus went away and is back.
        await stage.switcher.adopt()
        assert stage.switcher.costs("a")["cold"] == 45.0


@simulated
async def test_one_that_died_while_it_drained_tells_nothing_of_what_it_takes_to_leave() -> None:
    async with on_stage(A, B) as stage:
        stage.units.takes["stop a"] = 5.0
        await stage.ask("a")
        await stage.ask("b")
        stream = stage.client("a")
        await stream.admitted.wait()
        job = stage.switcher.stop("a")
        await stage.until_state("a", State.DRAINING)
        stage.units.die("a")
        await stream.finish()
        assert await stage.result(job) == "done"
        assert stage.switcher.costs("a")["out"] == 5.0


@simulated
async def test_costs_of_another_format_are_learnt_again(directories: Path) -> None:
    (directories / "state").mkdir()
    path = directories / "state" / "costs.json"
    path.write_text('{"version": 99, "models": {"a": {"cold": [40.0]}}}')
    async with on_stage(A) as stage:
        await stage.settle()
        assert stage.switcher._book.costs.known("a", Cost.COLD) is None


@simulated
async def test_costs_of_a_model_that_became_another_are_forgotten() -> None:
    async with on_stage(A) as stage:
        await stage.ask("a")
        assert stage.switcher._book.costs.known("a", Cost.COLD) is not None
        stage.reload(replace(A, aliases=("x",)))
        assert stage.switcher._book.costs.known("a", Cost.COLD) is not None
        stage.reload(replace(A, image="other"))
        assert stage.switcher._book.costs.known("a", Cost.COLD) is None


@simulated
async def test_a_full_disk_costs_no_more_than_what_was_learnt(
    directories: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    async with on_stage(A) as stage:
        monkeypatch.setattr("llmuxd.files.write_json", full)
        stage.switcher._book.learn("a", Cost.COLD, 1.0)
        await asyncio.sleep(10)
        stage.switcher._book.learn("a", Cost.COLD, 1.0)
        await asyncio.sleep(10)
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize(("seconds", "at_least", "at_most"), [(1.0, 4, 8), (20.0, 80, 84)])
@simulated
async def test_what_was_dear_to_bring_keeps_its_place_for_longer(
    seconds: float, at_least: float, at_most: float
) -> None:
    async with on_stage(A, B) as stage:
        stage.units.takes["start a"] = seconds
        busy = asyncio.create_task(keep_busy(stage, "a"))
        await stage.until_state("a", State.SERVING)
        begin = asyncio.get_running_loop().time()
        await stage.client("b").admitted.wait()
        assert at_least <= asyncio.get_running_loop().time() - begin <= at_most
        busy.cancel()


@simulated
async def test_what_is_parked_first_now_is_reckoned_no_dearer_than_from_its_image() -> None:
    async with on_stage(replace(A, tier=Tier.PARK, devices=()), B) as stage:
        for cost, seconds in ((Cost.COLD, 70.0), (Cost.RESTORE, 7.0), (Cost.GAP, 5.0)):
            for _ in range(2):
                stage.switcher._book.learn("a", cost, seconds)
        await stage.ask("a")
        begin = asyncio.get_running_loop().time()
        await stage.ask("b")
        # Its usual gaps are worth waiting for where it is dear to bring back, and it is not.
        assert asyncio.get_running_loop().time() - begin < 1
