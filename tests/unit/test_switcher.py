# SPDX-License-Identifier: MIT
import asyncio
import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmuxd import helper
from llmuxd.config import Snapshot, Tier
from llmuxd.errors import (
    ModelFailed,
    NoRoom,
    NoSuchModel,
    NotRunning,
    NotSupported,
    Stopping,
    UnitRefused,
)
from llmuxd.jobs import Job
from llmuxd.model.activation import (
    PARKED,
    RELEASED,
    Activation,
    Leave,
    has_parked,
    note_place,
    one_at_a_time,
    order_leave,
    take_leave_order,
    take_park_order,
)
from llmuxd.model.checkpoint import Checkpoint
from llmuxd.model.parking import Parked
from llmuxd.policy import Gpu
from llmuxd.state import State, UnitStatus
from llmuxd.switcher import Switcher, pauses
from llmuxd.units import Units

from .fake_units import (
    DOWN,
    FAILED,
    PARKED_MEMORY,
    UP,
    FakeUnits,
    a_checkpoint,
    a_model,
    an_activation,
)
from .simulated import simulated
from .stage import Stage, on_stage

A, B, C = a_model("a", aliases=("first",)), a_model("b"), a_model("c")


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "COOL_DOWN", (0.02, 60.0))
    monkeypatch.setattr(pauses, "LEAVE_AGAIN", 0.03)
    monkeypatch.setattr(pauses, "CONNECT_AGAIN", 0.03)


def test_fake_units_have_the_surface_of_the_real_ones() -> None:
    for name, member in vars(Units).items():
        if inspect.iscoroutinefunction(member) and not name.startswith("_"):
            assert name in vars(FakeUnits), f"{name} would call systemd"


# Serving


async def test_a_request_starts_its_model_and_is_served() -> None:
    async with on_stage(A) as stage:
        stage.units.ports["a"] = 21001
        client = stage.client("a")
        await client.admitted.wait()
        assert client.port == 21001
        assert stage.units.log == ["start a"]
        assert stage.switcher.state("a") is State.SERVING
        assert stage.switcher.model("a").in_flight == 1
        await client.finish()
        assert stage.switcher.model("a").in_flight == 0


async def test_an_alias_is_the_model() -> None:
    async with on_stage(A) as stage:
        await stage.ask("first")
        assert stage.units.log == ["start a"]


async def test_unknown_model_is_refused_and_moves_nothing() -> None:
    async with on_stage(A) as stage:
        with pytest.raises(NoSuchModel):
            await stage.ask("z")
        assert stage.units.log == []


async def test_requests_that_wait_are_served_together() -> None:
    async with on_stage(A) as stage:
        gate = stage.units.hold("start", "a")
        clients = [stage.client("a") for _ in range(20)]
        await gate.reached.wait()
        assert stage.switcher.queue_length() == 20
        gate.open()
        for client in clients:
            await client.admitted.wait()
        assert stage.units.log == ["start a"]
        assert stage.switcher.queue_length() == 0
        assert stage.switcher.model("a").in_flight == 20


async def test_models_on_other_gpus_do_not_wait() -> None:
    async with on_stage(a_model("a", 0), a_model("b", 1)) as stage:
        gate = stage.units.hold("start", "a")
        first = stage.client("a")
        await gate.reached.wait()
        await stage.ask("b")
        assert stage.served == ["b"]
        gate.open()
        await first.admitted.wait()


async def test_model_on_two_gpus_waits_for_both() -> None:
    async with on_stage(a_model("a", 0), a_model("b", 1), a_model("big", 0, 1)) as stage:
        one, two = stage.client("a"), stage.client("b")
        await one.admitted.wait()
        await two.admitted.wait()
        big = stage.client("big")
        await stage.until_state("b", State.DRAINING)
        await one.finish()
        await stage.until_state("a", State.CHECKPOINTED)
        assert not big.admitted.is_set() and "start big" not in stage.units.log
        await two.finish()
        await big.admitted.wait()


async def test_all_gets_served_in_the_order_of_arrival() -> None:
    async with on_stage(A, B, C) as stage:
        gate = stage.units.hold("start", "a")
        clients = [stage.client(name) for name in "abcab"]
        for client in clients:
            client.end.set()
        await gate.reached.wait()
        gate.open()
        await asyncio.gather(*(client.task for client in clients))
        assert stage.served == ["a", "a", "b", "b", "c"]
        assert stage.units.log == ["start a", "stop a", "start b", "stop b", "start c"]


# Rule 1: a request in flight is never cut by a switch


async def test_a_switch_waits_for_the_requests_in_flight() -> None:
    async with on_stage(A, B) as stage:
        one, two = stage.client("a"), stage.client("a")
        await one.admitted.wait()
        await two.admitted.wait()
        other = stage.client("b")
        await stage.until_state("a", State.DRAINING)
        await one.finish()
        await stage.settle()
        assert stage.units.log == ["start a"] and not two.task.done()
        await two.finish()
        await other.admitted.wait()
        assert stage.units.log == ["start a", "stop a", "start b"]


async def test_new_requests_wait_behind_a_drain() -> None:
    async with on_stage(A, B) as stage:
        one = stage.client("a")
        await one.admitted.wait()
        other = stage.client("b")
        await stage.until_state("a", State.DRAINING)
        late = stage.client("a")
        await stage.settle()
        assert not late.admitted.is_set()
        await one.finish()
        await other.admitted.wait()
        assert not late.admitted.is_set()
        await other.finish()
        await late.admitted.wait()
        assert stage.served == ["a", "b", "a"]


# Rule 2: no thrash


async def test_a_woken_model_serves_before_it_leaves_again() -> None:
    async with on_stage(A, B) as stage:
        gate = stage.units.hold("start", "a")
        one = stage.client("a")
        await gate.reached.wait()
        other = stage.client("b")
        await stage.settle()
        gate.open()
        await one.admitted.wait()
        await stage.until_state("a", State.DRAINING)
        await stage.settle()
        assert stage.units.log == ["start a"]
        await one.finish()
        await other.admitted.wait()
        assert stage.units.log == ["start a", "stop a", "start b"]


async def test_two_busy_models_switch_once_a_batch_and_no_oftener() -> None:
    async with on_stage(A, B) as stage:
        gate = stage.units.hold("start", "a")
        clients = [stage.client(name) for name in "abababababab"]
        for client in clients:
            client.end.set()
        await gate.reached.wait()
        gate.open()
        await asyncio.gather(*(client.task for client in clients))
        assert stage.units.log == ["start a", "stop a", "start b"]


# Rule 4: who left causes nothing


async def test_client_that_leaves_the_queue_causes_no_switch() -> None:
    async with on_stage(A, B) as stage:
        one = stage.client("a")
        await one.admitted.wait()
        other = stage.client("b")
        await stage.until_state("a", State.DRAINING)
        await other.leave()
        await stage.until_state("a", State.SERVING)
        assert stage.switcher.queue_length() == 0
        late = stage.client("a")
        await late.admitted.wait()
        await one.finish()
        await late.finish()
        await stage.settle()
        assert stage.units.log == ["start a"]


async def test_queue_that_emptied_while_the_other_stopped_starts_nothing() -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("a")
        gate = stage.units.hold("stop", "a")
        other = stage.client("b")
        await gate.reached.wait()
        await other.leave()
        gate.open()
        await stage.until_state("a", State.CHECKPOINTED)
        await stage.settle()
        assert stage.units.log == ["start a", "stop a"]
        await stage.ask("b")


async def test_client_that_leaves_in_mid_start_leaves_a_usable_model() -> None:
    async with on_stage(A, B) as stage:
        gate = stage.units.hold("start", "a")
        client = stage.client("a")
        await gate.reached.wait()
        await client.leave()
        gate.open()
        await stage.until_state("a", State.SERVING)
        assert stage.switcher.model("a").in_flight == 0
        await stage.ask("a")
        await stage.ask("b")
        assert stage.units.log == ["start a", "stop a", "start b"]


async def test_client_that_leaves_in_the_moment_it_is_let_in_leaves_no_place_taken() -> None:
    async with on_stage(A, B, run=False) as stage:
        stage.units.up_by_hand("a")
        client = stage.client("a")
        await stage.settle()
        await stage.switcher._decider.step()
        await stage.until_idle()
        await stage.settle()
        await stage.switcher._decider.step()
        assert stage.switcher.model("a").in_flight == 1 and not client.admitted.is_set()
        await client.leave()
        assert not client.admitted.is_set()
        assert stage.switcher.model("a").in_flight == 0


async def test_the_others_of_a_queue_stay_when_one_leaves() -> None:
    async with on_stage(A, B) as stage:
        one = stage.client("a")
        await one.admitted.wait()
        first, second = stage.client("b"), stage.client("b")
        await stage.until_state("a", State.DRAINING)
        await first.leave()
        await stage.settle()
        assert stage.switcher.state("a") is State.DRAINING
        await one.finish()
        await second.admitted.wait()


# Rule 5: failures


async def test_one_failure_is_tried_again() -> None:
    async with on_stage(A) as stage:
        stage.units.break_verb("start", "a", times=1)
        await stage.ask("a")
        assert stage.units.log == ["start a", "start a"]
        assert stage.switcher.model("a").failures == 0
        assert stage.switcher.model("a").last_error == ""


async def test_model_that_keeps_failing_refuses_with_reason_and_time() -> None:
    async with on_stage(A) as stage:
        stage.units.break_verb("start", "a")
        one, two = stage.client("a"), stage.client("a")
        for client in (one, two):
            error = await client.error()
            assert isinstance(error, ModelFailed)
            assert "it ran out of memory" in str(error)
            assert error.retry_after == 60.0
        assert stage.units.log == ["start a", "start a"]
        assert stage.switcher.state("a") is State.FAILED


async def test_requests_in_the_cool_down_are_refused_at_once() -> None:
    async with on_stage(A) as stage:
        stage.units.break_verb("start", "a")
        await stage.client("a").error()
        error = await stage.client("a").error()
        assert isinstance(error, ModelFailed)
        assert error.retry_after is not None and 50 < error.retry_after <= 60
        assert "keeps failing" in str(error) and "llmuxctl logs a" in str(error)
        assert stage.units.log == ["start a", "start a"]
        assert stage.switcher.queue_length() == 0


async def test_after_the_cool_down_one_try_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "COOL_DOWN", (0.0, 0.0, 60.0))
    async with on_stage(A) as stage:
        stage.units.break_verb("start", "a")
        await stage.client("a").error()
        await stage.client("a").error()
        assert stage.units.log == ["start a"] * 3
        stage.units.mend_verb("start", "a")
        stage.switcher.model("a").may_start_at = 0.0  # the cool-down has passed
        await stage.ask("a")


async def test_others_go_on_while_one_fails() -> None:
    async with on_stage(A, B) as stage:
        stage.units.break_verb("start", "a")
        gate = stage.units.hold("start", "a")
        failing = stage.client("a")
        await gate.reached.wait()
        other = stage.client("b")
        await stage.settle()
        gate.open()
        await other.admitted.wait()
        await stage.settle()
        assert "stop b" not in stage.units.log
        await other.finish()
        assert isinstance(await failing.error(), ModelFailed)
        await stage.ask("b")


async def test_nobody_leaves_the_gpu_for_a_model_in_its_cool_down() -> None:
    async with on_stage(A, B) as stage:
        stage.units.break_verb("start", "a")
        await stage.client("a").error()
        await stage.ask("b")
        await stage.client("a").error()
        await stage.settle()
        assert stage.units.log == ["start a", "start a", "start b"]


async def test_an_operator_may_ask_before_the_cool_down_ends() -> None:
    async with on_stage(A) as stage:
        stage.units.break_verb("start", "a")
        await stage.client("a").error()
        stage.units.mend_verb("start", "a")
        assert await stage.result(stage.switcher.switch("a")) == "done"
        await stage.ask("a")


async def test_unit_that_says_done_but_is_not_there_is_a_failure() -> None:
    async with on_stage(A) as stage:
        original = stage.units.start

        async def start(name: str) -> str:
            await original(name)
            stage.units.die(name)
            return "done"

        stage.units.start = start  # type: ignore[method-assign]
        assert isinstance(await stage.client("a").error(), ModelFailed)


# A stop that fails


async def test_a_failed_stop_does_not_start_the_next_one() -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("a")
        stage.units.break_verb("stop", "a")
        other = stage.client("b")
        await stage.until(lambda: stage.units.log.count("stop a") == 2)
        assert "start b" not in stage.units.log and not other.admitted.is_set()
        stage.units.mend_verb("stop", "a")
        await other.admitted.wait()


async def test_model_that_would_not_stop_still_serves() -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("a")
        stage.units.break_verb("stop", "a", times=1)
        other = stage.client("b")
        await stage.until(lambda: "stop a" in stage.units.log)
        late = stage.client("a")
        await stage.until(lambda: other.admitted.is_set() or late.admitted.is_set())
        await other.leave() if late.admitted.is_set() else await other.finish()
        await late.admitted.wait()


async def test_wake_up_after_a_failed_stop_needs_no_new_request() -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("a")
        stage.units.break_verb("stop", "a", times=1)
        other = stage.client("b")
        await other.admitted.wait()
        assert stage.units.log == ["start a", "stop a", "stop a", "start b"]


# Liveness


async def test_unit_that_dies_while_serving_is_started_for_the_next_request() -> None:
    async with on_stage(A) as stage:
        await stage.ask("a")
        stage.units.die("a")
        assert stage.switcher.state("a") is State.FAILED
        await stage.ask("a")
        assert stage.units.log == ["start a", "start a"]


async def test_nothing_points_to_a_unit_that_died() -> None:
    async with on_stage(A) as stage:
        await stage.ask("a")
        stage.units.die("a")
        await stage.until(lambda: stage.switcher.model("a").backend is None)
        assert stage.switcher.model("a").activation is None
        assert stage.units.log == ["start a"]


async def test_requests_of_a_dead_unit_do_not_keep_its_place() -> None:
    async with on_stage(A, B) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        stage.units.die("a")
        await stage.ask("b")
        assert stage.units.log == ["start a", "start b"]
        await client.finish()
        assert stage.switcher.model("a").in_flight == 0


async def test_unit_that_dies_while_it_drains_makes_room() -> None:
    async with on_stage(A, B) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        other = stage.client("b")
        await stage.until_state("a", State.DRAINING)
        stage.units.die("a")
        await client.finish()
        await other.admitted.wait()
        assert stage.switcher.model("a").backend is None


async def test_server_that_came_back_elsewhere_is_found() -> None:
    async with on_stage(A) as stage:
        stage.units.ports["a"] = 21001
        await stage.ask("a")
        stage.units.die("a", DOWN)
        stage.units.ports["a"] = 21002
        client = stage.client("a")
        await client.admitted.wait()
        assert client.port == 21002


async def test_server_that_cannot_be_reached_is_looked_for_again() -> None:
    async with on_stage(A) as stage:
        stage.units.ports["a"] = 21001
        client = stage.client("a")
        await client.admitted.wait()
        backend = stage.switcher.model("a").backend
        assert backend is not None
        an_activation("a", 21002).save()
        await stage.switcher.lost("a", backend)
        late = stage.client("a")
        await stage.settle()
        assert not late.admitted.is_set()
        await late.admitted.wait()
        assert late.port == 21002


async def test_word_of_a_server_that_was_replaced_already_is_ignored() -> None:
    async with on_stage(A) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        backend = stage.switcher.model("a").backend
        assert backend is not None
        stage.units.die("a")
        await client.finish()
        await stage.ask("a")
        current = stage.switcher.model("a").backend
        await stage.switcher.lost("a", backend)
        assert stage.switcher.model("a").backend is current


# Tiers


PARKING = replace(A, tier=Tier.PARK, devices=())


async def test_a_model_that_parks_leaves_and_comes_back_by_reloads_of_its_unit() -> None:
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        assert stage.switcher.state("a") is State.PARKED
        await stage.ask("a")
        await stage.until_idle()
        # It holds no GPU: so it comes back beside the other, which leaves behind its back.
        assert stage.units.log == ["start a", "reload a", "start b", "reload a", "stop b"]


async def test_a_model_that_cannot_be_parked_is_checkpointed() -> None:
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        stage.units.break_verb("reload", "a", times=1)
        await stage.ask("b")
        assert stage.units.log == ["start a", "reload a", "stop a", "start b"]
        assert not take_park_order("a")


async def test_a_parked_model_that_does_not_come_back_is_ended_and_started_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pauses, "COOL_DOWN", (0.01,))
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        stage.units.break_verb("reload", "a", times=1)
        await stage.ask("a")
        assert stage.units.log[-4:] == ["reload a", "stop a", "stop b", "start a"]


async def test_one_that_was_to_leave_stays_where_the_newcomer_does_not_come() -> None:
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        gate = stage.units.hold("reload", "a")
        client = stage.client("a")
        await gate.reached.wait()
        assert stage.switcher.state("b") is State.DRAINING
        stage.units.break_verb("reload", "a", times=1)
        await client.leave()
        gate.open()
        await stage.until_state("b", State.SERVING)
        await stage.ask("b")
        assert stage.units.log[-2:] == ["reload a", "stop a"]


@pytest.mark.parametrize("when", ["it comes", "the other one drains"])
async def test_llmuxd_that_ends_while_both_are_in_is_followed_by_one_that_sends_the_old_one_away(
    when: str,
) -> None:
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        stream = stage.client("b")
        await stream.admitted.wait()
        gate = stage.units.hold("reload", "a")
        client = stage.client("a")
        await gate.reached.wait()
        if when != "it comes":
            gate.open()
            await client.admitted.wait()
        await stage.switcher.close()
        again = Switcher(stage.switcher.config, stage.units)
        # Its helper goes on with it, and has it locked meanwhile.
        with one_at_a_time("a"):
            await again.adopt()
        again.listeners.append(stage.heard)
        running = asyncio.create_task(again.run())
        if when == "it comes":
            assert again.state("b") is State.SERVING
            Parked.forget("a")
            stage.units.by_hand("a", replace(UP, text="serving again"))
        await stage.until(lambda: again.state("b") is State.CHECKPOINTED)
        await stage.until(lambda: again.model("b").transition is None)
        assert again.state("a") is State.SERVING
        await again.close()
        await running
        assert "succession.json" not in os.listdir(os.environ["RUNTIME_DIRECTORY"])


async def test_an_image_comes_in_beside_another_where_memory_is_plenty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = replace(A, devices=())
    async with on_stage(cpu, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        await stage.ask("a")
        await stage.until_idle()
        assert stage.units.log[-2:] == ["start a", "stop b"]
        await stage.ask("b")
        monkeypatch.setattr("llmuxd.memory.available", lambda: 1)
        await stage.ask("a")
        assert stage.units.log[-2:] == ["stop b", "start a"]


async def test_a_parked_model_that_was_reloaded_by_hand_serves() -> None:
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        await stage.units.stop("b")
        stage.units.by_hand("a", replace(UP, active="reloading"))
        Parked.forget("a")
        stage.units.by_hand("a", UP)
        await stage.until(lambda: stage.switcher.model("a").backend is not None)
        assert stage.switcher.state("a") is State.SERVING
        assert stage.units.log[-1] == "stop b"


async def test_a_parked_model_is_left_so_by_the_next_llmuxd() -> None:
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        await stage.result(stage.switcher.park("a"))
        again = Switcher(stage.switcher.config, stage.units)
        await again.adopt()
        assert again.state("a") is State.PARKED
        await again.close()


async def test_a_model_that_was_left_half_parked_is_woken() -> None:
    async with on_stage(PARKING, B) as stage:
        Parked().save("a")
        stage.units.up_by_hand("a")
        await stage.ask("a")
        assert stage.units.log == ["reload a"]
        assert not has_parked("a")


async def test_one_that_is_half_parked_when_llmuxd_starts_is_not_taken_to_serve() -> None:
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        Parked().save("a")
        again = Switcher(stage.switcher.config, stage.units)
        await again.adopt()
        assert again.model("a").backend is None
        assert again.state("a") is not State.PARKED
        await again.close()


async def test_a_park_that_ends_after_llmuxd_was_killed_is_seen() -> None:
    async with on_stage(PARKING, B) as stage:
        await stage.ask("a")
        # As the helper does it, which was asked by the one before.
        Parked(whole=True).save("a")
        stage.units.by_hand("a", replace(UP, text=PARKED))
        await stage.until_state("a", State.PARKED)
        await stage.ask("a")
        assert stage.units.log == ["start a", "reload a"]


async def test_a_unit_that_an_operator_froze_is_thawed_for_a_request() -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("a")
        stage.units.by_hand("a", replace(UP, freezer="frozen"))
        assert stage.switcher.state("a") is State.PARKED
        await stage.ask("a")
        assert stage.units.log == ["start a", "thaw a"]


async def test_short_memory_sends_the_least_lately_used_to_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    also = replace(a_model("c"), tier=Tier.PARK, devices=())
    short = False
    monkeypatch.setattr("llmuxd.memory.short", lambda: short)
    async with on_stage(PARKING, B, also) as stage:
        for name in ("c", "a", "b"):
            await stage.ask(name)
        assert stage.switcher.state("a") is stage.switcher.state("c") is State.PARKED
        short = True
        stage.switcher._fleet.woken.set()  # it looks whenever something happened
        gate = stage.units.hold("stop", "c")
        await gate.reached.wait()
        await stage.settle()
        assert stage.switcher.state("a") is State.PARKED
        short = False
        gate.open()
        await stage.until_idle()
        assert stage.units.log[-1] == "stop c"


async def test_and_rather_one_that_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    short = False
    monkeypatch.setattr("llmuxd.memory.short", lambda: short)
    async with on_stage(PARKING, B, replace(C, tier=Tier.PARK)) as stage:
        for name in ("c", "a"):
            await stage.ask(name)
        stream = stage.client("b")
        await stream.admitted.wait()
        waiting = stage.client("c")
        await stage.settle()
        short = True
        gate = stage.units.hold("stop", "a")
        stage.switcher._fleet.woken.set()
        await gate.reached.wait()
        assert stage.switcher.state("c") is State.PARKED
        short = False
        gate.open()
        await stream.finish()
        await waiting.finish()


async def test_nobody_waits_for_what_goes_from_memory_to_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmuxd.memory.short", lambda: False)
    async with on_stage(PARKING, B, C) as stage:
        for name in ("a", "b"):
            await stage.ask(name)
        monkeypatch.setattr("llmuxd.memory.short", lambda: True)
        gate = stage.units.hold("stop", "a")
        stage.switcher._fleet.woken.set()
        await gate.reached.wait()
        await stage.ask("c")
        gate.open()
        await stage.until_state("a", State.CHECKPOINTED)
        assert stage.switcher.model("a").held == (0,)


async def test_one_that_did_not_get_to_disk_has_its_place_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmuxd.memory.short", lambda: False)
    async with on_stage(PARKING, B) as stage:
        for name in ("a", "b"):
            await stage.ask(name)
        monkeypatch.setattr("llmuxd.memory.short", lambda: True)
        asked = asyncio.Event()

        async def stop(name: str) -> str:
            asked.set()
            raise UnitRefused("no")

        monkeypatch.setattr(stage.units, "stop", stop)
        stage.switcher._fleet.woken.set()
        await asked.wait()
        await stage.until_idle()
        monkeypatch.setattr("llmuxd.memory.short", lambda: False)
        assert stage.switcher.state("a") is State.PARKED
        assert stage.switcher.model("a").held == (0,)


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Says whether the host's memory is short."""

    def say(short: bool) -> None:
        monkeypatch.setattr("llmuxd.memory.short", lambda: short)

    say(False)
    return say


# Its dump needs its GPU.
DEEP = replace(A, tier=Tier.PARK)


@simulated
async def test_short_memory_takes_no_gpu_from_who_has_it(
    little: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with on_stage(DEEP, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        assert stage.switcher.state("a") is State.PARKED
        gate = stage.units.hold("stop", "a")
        little(True)
        stage.switcher._fleet.woken.set()
        await gate.reached.wait()
        order = take_leave_order("a")
        order_leave("a", order.leave, order.wanted)
        little(False)
        gate.open()
        await stage.until_idle()
        assert order.leave is Leave.END
        assert stage.switcher.state("a") is State.COLD
        assert stage.serving() == ["b"]
    (line,) = [r.getMessage() for r in caplog.records if "memory is short" in r.getMessage()]
    assert "a: memory is short" in line and "is lost, and it starts cold" in line


@simulated
async def test_one_that_is_stopped_for_that_keeps_the_image_that_it_has(
    little: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with on_stage(DEEP, B) as stage:
        await stage.ask("a")
        before = a_checkpoint(DEEP)
        before.save()
        await stage.ask("b")
        little(True)
        stage.switcher._fleet.woken.set()
        await stage.until_state("a", State.CHECKPOINTED)
        little(False)
        assert Checkpoint.load("a") == before
        assert stage.serving() == ["b"]
    assert "and it is restored from the checkpoint that it has" in caplog.text


@simulated
async def test_a_limit_alone_is_no_reason_to_lose_what_a_server_has_in_memory() -> None:
    async with on_stage(DEEP, B) as stage:
        stage.switcher.reload(replace(stage.config, park_memory=1))
        await stage.ask("a")
        await stage.ask("b")
        stage.switcher._fleet.woken.set()
        await stage.until_idle()
        assert stage.switcher.state("a") is State.PARKED
        # Once its GPU is free it goes to disk.
        assert await stage.result(stage.switcher.stop("b")) == "done"
        await stage.until_state("a", State.CHECKPOINTED)


@simulated
async def test_a_parked_model_is_not_dumped_on_a_gpu_that_another_has() -> None:
    async with on_stage(DEEP, B) as stage:
        await stage.ask("a")
        await stage.ask("b")
        job = stage.switcher.checkpoint("a")
        assert await stage.result(job) == "failed"
        assert isinstance(job.error, NoRoom)
        assert "'b' holds GPU 0" in str(job.error) and "have that leave first" in str(job.error)
        assert stage.switcher.state("a") is State.PARKED
        assert await stage.result(stage.switcher.stop("b")) == "done"
        assert await stage.result(stage.switcher.checkpoint("a")) == "done"
        assert stage.switcher.state("a") is State.CHECKPOINTED


@simulated
async def test_nor_on_one_that_others_than_models_have() -> None:
    gib = 1 << 30
    foreign = 0

    async def gauge() -> dict[int, Gpu]:
        return {0: Gpu(80 * gib, foreign, others=(("python3 (PID 7)", foreign),))}

    async with on_stage(DEEP, B, gauge=gauge) as stage:
        await stage.ask("a")
        assert await stage.result(stage.switcher.park("a")) == "done"
        Parked(whole=True, vram={0: 20 * gib}).save("a")
        foreign = 61 * gib
        job = stage.switcher.checkpoint("a")
        assert await stage.result(job) == "failed"
        assert "python3 (PID 7) holds 61.0 GiB of GPU 0" in str(job.error)
        assert stage.switcher.state("a") is State.PARKED
        foreign = 60 * gib
        assert await stage.result(stage.switcher.checkpoint("a")) == "done"


@pytest.mark.parametrize(
    "why",
    [
        "its GPU's memory is full: python3 (PID 7) holds 61.0 GB",
        "",  # its helper is gone, and a reload says it to the journal alone
    ],
)
async def test_one_whose_gpu_is_full_waits_in_memory_still(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    async def full(units: object, name: str) -> str:
        return why

    async with on_stage(PARKING, B) as stage:
        for name in ("a", "b"):
            await stage.ask(name)
        with monkeypatch.context() as patched:
            patched.setattr(helper, "wake", full)
            job = stage.switcher.switch("a")
            assert await stage.result(job) == "failed"
            assert why in str(job.error) and "waits there still" in str(job.error)
        assert stage.switcher.state("a") is State.PARKED
        assert "stop a" not in stage.units.log
        assert await stage.result(stage.switcher.switch("a")) == "done"
        assert stage.units.log[-1] == "reload a"


@simulated
async def test_its_requests_are_refused_until_its_gpu_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    why = "its GPU's memory is full: python3 (PID 7) holds 61.0 GB"
    tried: list[str] = []

    async def full(units: object, name: str) -> str:
        tried.append(name)
        return why

    async with on_stage(PARKING, B) as stage:
        for name in ("a", "b"):
            await stage.ask(name)
        with monkeypatch.context() as patched:
            patched.setattr(helper, "wake", full)
            for tries in (2, 2):
                error = await stage.client("a").error()
                assert isinstance(error, ModelFailed) and error.http_status == 503
                assert why in str(error) and error.retry_after == 60.0
                assert tried == ["a"] * tries
            # Others have its place meanwhile.
            await stage.ask("b")
            assert stage.switcher.state("a") is State.PARKED
            await asyncio.sleep(60.0)
            assert isinstance(await stage.client("a").error(), ModelFailed)
            assert tried == ["a"] * 3
        await asyncio.sleep(60.0)
        await stage.ask("a")
        assert "stop a" not in stage.units.log and stage.served == ["a", "b", "b", "a"]


@simulated
async def test_short_memory_rather_takes_one_whose_gpu_is_free(
    little: Callable[[bool], None],
) -> None:
    other = replace(a_model("c", 1), tier=Tier.PARK)
    async with on_stage(DEEP, B, other, a_model("d", 1)) as stage:
        stage.units.pace = 1.0
        for name in ("a", "c", "d", "b"):
            await stage.ask(name)
        assert stage.switcher.model("a").idle_since < stage.switcher.model("c").idle_since
        await stage.result(stage.switcher.stop("d"))
        assert stage.switcher.state("a") is stage.switcher.state("c") is State.PARKED
        gate = stage.units.hold("stop", "c")
        little(True)
        stage.switcher._fleet.woken.set()
        await gate.reached.wait()
        assert stage.switcher.model("c").held == (1,)
        little(False)
        gate.open()
        await stage.until_idle()
        assert stage.switcher.state("c") is State.CHECKPOINTED
        assert stage.switcher.state("a") is State.PARKED


@simulated
async def test_short_memory_looks_anew_at_what_is_free(little: Callable[[bool], None]) -> None:
    """What another held that has left meanwhile is not in the way of a dump."""
    gib = 1 << 30
    held: dict[str, int] = {}

    async def gauge() -> dict[int, Gpu]:
        return {0: Gpu(80 * gib, held=dict(held))}

    models = replace(DEEP, vram=50 * gib), replace(B, vram=60 * gib)
    async with on_stage(*models, gauge=gauge) as stage:
        for name in ("a", "b"):
            await stage.ask(name)
        held["b"] = 60 * gib
        await stage.switcher._decider._measure()
        held.clear()
        little(True)
        assert await stage.result(stage.switcher.stop("b")) == "done"
        await stage.until(lambda: stage.units.status("a").down)
        await stage.until_idle()
        assert stage.switcher.state("a") is State.CHECKPOINTED


@simulated
async def test_short_memory_keeps_an_image_that_is_there_already(
    little: Callable[[bool], None],
) -> None:
    """Its server is just ended for that, whoever has its GPU."""
    async with on_stage(DEEP, B) as stage:
        await stage.ask("a")
        run = Activation.load("a")
        assert run is not None
        replace(run, snapshot=Snapshot.PRISTINE).save()
        a_checkpoint(DEEP).save()
        await stage.ask("b")
        little(True)
        stage.switcher._fleet.woken.set()
        await stage.until_state("a", State.CHECKPOINTED)
        assert stage.serving() == ["b"]


async def test_the_next_one_comes_once_the_gpu_is_free() -> None:
    """What is left of the old one's end is disk work."""
    async with on_stage(A, B) as stage:
        await stage.ask("a")
        gate = stage.units.hold("stop", "a")
        waiting = stage.client("b")
        await gate.reached.wait()
        stage.units.by_hand("a", replace(UP, active="deactivating", text="writing"))
        await stage.settle()
        assert "start b" not in stage.units.log
        stage.units.by_hand("a", replace(UP, active="deactivating", text=RELEASED))
        await waiting.admitted.wait()
        assert stage.switcher.state("a") is State.DRAINING
        await waiting.finish()
        again = stage.client("a")
        await stage.settle()
        assert not again.admitted.is_set()
        gate.open()
        await again.admitted.wait()
        assert stage.units.log == ["start a", "stop a", "start b", "stop b", "start a"]


async def test_parked_models_hold_no_more_memory_than_they_may() -> None:
    also = replace(a_model("c"), tier=Tier.PARK, devices=())
    async with on_stage(PARKING, B, also) as stage:
        limited = replace(stage.config, park_memory=PARKED_MEMORY)
        stage.switcher.reload(limited)
        await stage.ask("a")
        await stage.ask("c")
        assert stage.switcher.state("a") is State.PARKED
        gate = stage.units.hold("stop", "a")
        # The second one that parks is one too many; who waits does not wait for that.
        await stage.ask("b")
        await gate.reached.wait()
        assert stage.switcher.state("c") is State.PARKED
        gate.open()
        await stage.until_state("a", State.CHECKPOINTED)


async def test_whose_image_made_room_for_another_is_seen_to_be_cold() -> None:
    async with on_stage(A, B, C) as stage:
        for name in ("a", "b", "c"):
            await stage.ask(name)
        assert stage.switcher.state("a") is State.CHECKPOINTED
        record = Checkpoint.load("a")
        assert record is not None
        gate = stage.units.hold("stop", "c")
        waiting = stage.client("b")
        await gate.reached.wait()
        # As the helper does it, in the middle of c's dump; and it knows who is waited for.
        assert take_leave_order("c").wanted == ("b",)
        record.invalidate("it made room for another")
        gate.open()
        await waiting.finish()
        assert stage.switcher.state("a") is State.COLD
        assert stage.switcher.why_no_checkpoint("a") == "it made room for another"


# What operators do to units


async def test_unit_started_by_hand_beside_another_on_its_gpu_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("b")
        stage.units.up_by_hand("a")
        await stage.until(lambda: stage.switcher.model("a").backend is not None)
        await stage.until(lambda: "a was started beside b on GPU 0" in caplog.text)


async def test_unit_that_starts_by_hand_is_on_the_gpu_that_it_was_told() -> None:
    async with on_stage(A, B) as stage:
        stage.units.by_hand("a", UnitStatus("activating", "start"))
        stage.reload(a_model("a", 1), B)
        client = stage.client("b")
        await stage.settle()
        assert stage.units.log == []
        stage.units.by_hand("a", DOWN)
        await client.admitted.wait()
        assert stage.units.log == ["start b"]


async def test_unit_started_by_hand_serves() -> None:
    async with on_stage(A, B) as stage:
        stage.units.ports["a"] = 21001
        stage.units.up_by_hand("a")
        await stage.until(lambda: stage.switcher.model("a").backend is not None)
        await stage.ask("a")
        assert stage.units.log == []
        await stage.ask("b")
        assert stage.units.log == ["stop a", "start b"]


async def test_unit_that_an_operator_is_starting_holds_its_gpu() -> None:
    async with on_stage(A, B) as stage:
        stage.units.by_hand("a", UnitStatus("activating", "start"))
        other = stage.client("b")
        await stage.settle()
        assert stage.units.log == []
        stage.units.up_by_hand("a")
        await other.admitted.wait()
        assert stage.units.log == ["stop a", "start b"]


async def test_unit_stopped_by_hand_is_started_for_the_next_request() -> None:
    async with on_stage(A) as stage:
        await stage.ask("a")
        await stage.units.stop("a")
        await stage.ask("a")
        assert stage.units.log == ["start a", "stop a", "start a"]


async def test_unit_that_an_operator_stops_is_waited_for() -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("a")
        stage.units.by_hand("a", UnitStatus("deactivating", "stop"))
        other = stage.client("b")
        await stage.settle()
        assert "start b" not in stage.units.log
        stage.units.die("a", DOWN)
        await other.admitted.wait()


async def test_unit_restarted_by_hand_is_reached_where_it_listens_now() -> None:
    async with on_stage(A) as stage:
        stage.units.ports["a"] = 21001
        await stage.ask("a")
        stage.units.by_hand("a", UnitStatus("deactivating", "stop"))
        await stage.settle()
        assert stage.switcher.model("a").backend is None
        assert stage.switcher.model("a").activation is None
        stage.units.ports["a"] = 21002
        stage.units.by_hand("a", UnitStatus("activating", "start"))
        stage.units.up_by_hand("a")
        client = stage.client("a")
        await client.admitted.wait()
        assert client.port == 21002
        assert stage.units.log == ["start a"]


async def test_a_bug_in_a_start_is_no_endless_loop(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "COOL_DOWN", (60.0,))
    async with on_stage(A) as stage:

        async def start(name: str) -> str:
            stage.units.log.append("start")
            raise RuntimeError("a bug")

        stage.units.start = start  # type: ignore[method-assign]
        client = stage.client("a")
        await stage.until(lambda: stage.switcher.model("a").failures == 1)
        await stage.settle()
        assert stage.units.log == ["start"]
        assert "a bug" in caplog.text
        await client.leave()


async def test_unit_that_does_not_say_where_it_is_gets_asked_again() -> None:
    async with on_stage(A) as stage:
        stage.units.by_hand("a", UP)
        client = stage.client("a")
        await stage.until(lambda: "does not say where" in stage.switcher.model("a").last_error)
        an_activation("a", 21001).save()
        await client.admitted.wait()
        assert client.port == 21001


# Adoption


async def test_what_runs_is_adopted_and_not_touched() -> None:
    stage = Stage(A, B)
    stage.units.ports["a"] = 21007
    stage.units.up_by_hand("a")
    a_checkpoint(B).save()
    await stage.switcher.adopt()
    assert stage.switcher.state("a") is State.SERVING
    assert stage.switcher.state("b") is State.CHECKPOINTED
    backend = stage.switcher.model("a").backend
    assert backend is not None and backend.port == 21007
    await stage.switcher.close()
    assert stage.units.log == []
    assert stage.units.status("a") == UP


async def test_one_that_was_frozen_by_hand_is_thawed_to_end_its_requests() -> None:
    async with on_stage(A) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        stage.units.by_hand("a", replace(UP, freezer="frozen"))
        job = stage.switcher.stop("a")
        await stage.settle()
        assert stage.units.log == ["start a", "thaw a"]
        await client.finish()
        assert await stage.result(job) == "done"


async def test_one_that_was_frozen_by_hand_is_thawed_to_be_parked() -> None:
    """Its helper could not do it, and llmuxd would wait for that for half an hour."""
    async with on_stage(replace(A, devices=())) as stage:
        await stage.ask("a")
        stage.units.by_hand("a", replace(UP, freezer="frozen"))
        assert await stage.result(stage.switcher.park("a")) == "done"
        assert stage.units.log == ["start a", "thaw a", "reload a"]


async def test_a_parked_unit_is_adopted_as_parked() -> None:
    stage = Stage(A)
    stage.units.up_by_hand("a")
    stage.units.by_hand("a", replace(UP, freezer="frozen"))
    await stage.switcher.adopt()
    assert stage.switcher.state("a") is State.PARKED
    await stage.switcher.close()


@pytest.mark.parametrize("told", ["before", "meanwhile"])
@simulated
async def test_one_that_comes_is_where_its_unit_says_whatever_the_file_says(told: str) -> None:
    """llmuxd was started in the middle of its start, with other GPUs in the file."""
    async with on_stage(replace(A, gpus=(1,)), B, run=False) as stage:
        for text in ("", "starting cold"):
            if text or told == "before":
                note_place("a", A.gpus)
            stage.units.by_hand("a", UnitStatus("activating", "start", text=text))
            if not text:
                await stage.take_over()
        client = stage.client("b")
        await stage.settle()
        assert stage.units.log == []
        stage.units.up_by_hand("a")
        await client.finish()
        assert stage.units.log == ["stop a", "start b"]
        assert await stage.result(stage.switcher.switch("a")) == "done"
        assert stage.serving() == ["a", "b"]


async def test_close_leaves_the_units_and_refuses_the_queue() -> None:
    async with on_stage(A, B) as stage:
        one = stage.client("a")
        await one.admitted.wait()
        other = stage.client("b")
        await stage.until_state("a", State.DRAINING)
        await stage.switcher.close()
        assert isinstance(await other.error(), Stopping)
        assert isinstance(await stage.client("a").error(), Stopping)
        assert stage.units.status("a").up and stage.units.log == ["start a"]


async def test_close_in_the_middle_of_a_start_leaves_no_task() -> None:
    async with on_stage(A) as stage:
        gate = stage.units.hold("start", "a")
        stage.client("a")
        await gate.reached.wait()
        gate.open()
        await stage.until(lambda: stage.switcher.state("a") is State.SERVING)
        await stage.switcher.close()
        assert stage.moving() == []
        await stage.settle()
        assert stage.moving() == []


# Jobs


async def test_switch_makes_a_model_serve_that_nobody_asked_for() -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("a")
        assert await stage.result(stage.switcher.switch("b")) == "done"
        assert stage.switcher.state("b") is State.SERVING
        assert stage.switcher.model("b").in_flight == 0
        assert await stage.result(stage.switcher.switch("b")) == "done"
        assert stage.units.log == ["start a", "stop a", "start b"]


async def test_switch_by_alias_and_of_a_stranger() -> None:
    async with on_stage(A) as stage:
        job = stage.switcher.switch("first")
        assert job.model == "a"
        assert await stage.result(job) == "done"
        with pytest.raises(NoSuchModel):
            stage.switcher.switch("z")
        assert stage.switcher.jobs.all() == []


async def test_switch_to_a_broken_model_fails_with_the_reason() -> None:
    async with on_stage(A) as stage:
        stage.units.break_verb("start", "a")
        job = stage.switcher.switch("a")
        assert await stage.result(job) == "failed"
        assert "it ran out of memory" in str(job.error)
        assert "it ran out of memory" in job.phase


async def test_cancelled_switch_leaves_no_wish_behind() -> None:
    async with on_stage(A, B) as stage:
        one = stage.client("a")
        await one.admitted.wait()
        job = stage.switcher.switch("b")
        await stage.until_state("a", State.DRAINING)
        stage.switcher.jobs.cancel(job.number)
        assert await stage.result(job) == "canceled"
        await stage.until_state("a", State.SERVING)
        await one.finish()
        await stage.settle()
        assert stage.units.log == ["start a"]


async def test_checkpoint_drains_and_writes() -> None:
    async with on_stage(A) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        job = stage.switcher.checkpoint("a")
        await stage.until_state("a", State.DRAINING)
        assert stage.units.log == ["start a"]
        await client.finish()
        assert await stage.result(job) == "done"
        assert stage.switcher.state("a") is State.CHECKPOINTED
        assert Checkpoint.load("a") is not None


async def test_stop_leaves_no_checkpoint() -> None:
    async with on_stage(A) as stage:
        await stage.ask("a")
        assert await stage.result(stage.switcher.stop("a")) == "done"
        assert stage.switcher.state("a") is State.COLD
        assert Checkpoint.load("a") is None


async def test_checkpoint_that_was_not_written_fails_the_job() -> None:
    async with on_stage(A) as stage:
        await stage.ask("a")
        gate = stage.units.hold("stop", "a")
        job = stage.switcher.checkpoint("a")
        await gate.reached.wait()
        broken = a_checkpoint(A).invalidate("the checkpoint failed: disk full")
        original = Checkpoint.save
        try:
            Checkpoint.save = lambda self: original(broken)  # type: ignore[method-assign]
            gate.open()
            assert await stage.result(job) == "failed"
        finally:
            Checkpoint.save = original  # type: ignore[method-assign]
        assert "disk full" in str(job.error)
        assert stage.switcher.state("a") is State.COLD


async def test_what_an_operator_drains_is_not_called_back_by_the_policy() -> None:
    async with on_stage(A, B) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        job = stage.switcher.stop("a")
        await stage.until_state("a", State.DRAINING)
        other = stage.client("b")
        await stage.settle()
        await other.leave()
        await stage.settle()
        assert stage.switcher.state("a") is State.DRAINING
        await client.finish()
        assert await stage.result(job) == "done"


async def test_job_cancelled_while_it_drains_lets_the_model_go_on() -> None:
    async with on_stage(A) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        job = stage.switcher.checkpoint("a")
        await stage.until_state("a", State.DRAINING)
        stage.switcher.jobs.cancel(job.number)
        assert await stage.result(job) == "canceled"
        await stage.until_state("a", State.SERVING)
        late = stage.client("a")
        await late.admitted.wait()
        assert stage.units.log == ["start a"]


async def test_job_cancelled_while_it_stops_does_not_break_the_stop() -> None:
    async with on_stage(A) as stage:
        await stage.ask("a")
        gate = stage.units.hold("stop", "a")
        job = stage.switcher.checkpoint("a")
        await gate.reached.wait()
        stage.switcher.jobs.cancel(job.number)
        assert await stage.result(job) == "canceled"
        gate.open()
        await stage.until_state("a", State.CHECKPOINTED)
        await stage.until_idle()
        await stage.ask("a")


async def test_job_that_waits_for_a_start_can_be_cancelled() -> None:
    async with on_stage(A) as stage:
        gate = stage.units.hold("start", "a")
        client = stage.client("a")
        await gate.reached.wait()
        job = stage.switcher.stop("a")
        await stage.settle()
        stage.switcher.jobs.cancel(job.number)
        assert await stage.result(job) == "canceled"
        gate.open()
        await client.admitted.wait()
        assert stage.units.log == ["start a"]


async def test_two_operators_at_once_do_not_meet() -> None:
    async with on_stage(A) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        jobs = [stage.switcher.checkpoint("a"), stage.switcher.stop("a"), stage.switcher.stop("a")]
        await stage.until_state("a", State.DRAINING)
        await client.finish()
        assert [await stage.result(job) for job in jobs] == ["done", "done", "done"]
        assert stage.units.log == ["start a", "stop a"]


async def test_stop_of_a_stopped_model_is_done() -> None:
    async with on_stage(A) as stage:
        assert await stage.result(stage.switcher.stop("a")) == "done"
        assert stage.units.log == []


async def test_requests_that_wait_while_a_model_is_stopped_bring_it_back() -> None:
    async with on_stage(A) as stage:
        await stage.ask("a")
        gate = stage.units.hold("stop", "a")
        stage.switcher.stop("a")
        await gate.reached.wait()
        client = stage.client("a")
        await stage.settle()
        gate.open()
        await client.admitted.wait()
        assert stage.units.log == ["start a", "stop a", "start a"]


async def test_warmup_ends_with_a_checkpoint() -> None:
    async with on_stage(A) as stage:
        assert await stage.result(stage.switcher.warmup("a")) == "done"
        assert stage.switcher.state("a") is State.CHECKPOINTED
        assert await stage.result(stage.switcher.warmup("a")) == "done"
        assert stage.units.log == ["start a", "stop a"]


async def test_park_and_back() -> None:
    model = replace(A, devices=())
    async with on_stage(model) as stage:
        await stage.ask("a")
        assert await stage.result(stage.switcher.park("a")) == "done"
        assert stage.switcher.state("a") is State.PARKED
        await stage.ask("a")
        assert stage.switcher.state("a") is State.SERVING
        assert stage.units.log == ["start a", "reload a", "reload a"]


async def test_a_parked_model_is_parked_already() -> None:
    async with on_stage(replace(A, devices=())) as stage:
        await stage.ask("a")
        assert await stage.result(stage.switcher.park("a")) == "done"
        assert await stage.result(stage.switcher.park("a")) == "done"
        assert stage.switcher.state("a") is State.PARKED
        assert stage.units.log == ["start a", "reload a"]


async def test_parked_model_can_be_stopped() -> None:
    async with on_stage(replace(A, devices=())) as stage:
        await stage.ask("a")
        await stage.result(stage.switcher.park("a"))
        assert await stage.result(stage.switcher.stop("a")) == "done"
        assert stage.units.log == ["start a", "reload a", "stop a"]


async def test_a_job_tells_what_it_does_and_not_what_was_before() -> None:
    async with on_stage(A, B) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        stage.units.by_hand("a", replace(UP, text="serving (cold, 58.00 s)"))
        stage.units.by_hand("b", replace(FAILED, text="failed: it ran out of memory"))
        switch = stage.switcher.switch("b")
        job = stage.switcher.checkpoint("a")
        await stage.until_state("a", State.DRAINING)
        assert (job.phase, switch.phase) == ("draining", "waiting")
        gate = stage.units.hold("stop", "a")
        client.end.set()
        await gate.reached.wait()
        assert job.phase == "draining"
        stage.units.by_hand("a", replace(stage.units.status("a"), text="writing the checkpoint"))
        assert job.phase == "writing the checkpoint"
        gate.open()
        assert await stage.result(job) == "done"
        assert await stage.result(switch) == "done"


@pytest.mark.parametrize("kind", ["switch", "preload"])
async def test_a_job_that_finds_its_model_serving_does_not_bring_it_back_after_a_stop(
    kind: str,
) -> None:
    async with on_stage(A) as stage:
        await stage.ask("a")
        jobs = [getattr(stage.switcher, kind)("a"), stage.switcher.stop("a")]
        for job in jobs:
            assert await stage.result(job) == "done"
        await stage.settle()
        assert stage.units.log == ["start a", "stop a"]


async def test_what_cannot_be_is_refused_before_a_job_begins() -> None:
    async with on_stage(A, replace(B, checkpoint=False, devices=())) as stage:
        with pytest.raises(NotRunning):
            stage.switcher.park("b")
        with pytest.raises(NotSupported, match="never checkpointed"):
            stage.switcher.checkpoint("b")
        with pytest.raises(NotRunning, match="llmuxctl warmup a"):
            stage.switcher.checkpoint("a")
        assert stage.switcher.jobs.all() == []


async def test_job_tells_what_the_unit_tells() -> None:
    async with on_stage(A) as stage:
        gate = stage.units.hold("start", "a")
        job = stage.switcher.switch("a")
        await gate.reached.wait()
        stage.units.by_hand("a", UnitStatus("activating", "start", text="restoring"))
        assert job.phase == "restoring"
        gate.open()
        await stage.result(job)


# State


async def test_image_that_vanished_is_no_checkpoint() -> None:
    async with on_stage(A) as stage:
        await stage.ask("a")
        job = stage.switcher.checkpoint("a")
        assert await stage.result(job) == "done"
        record = Checkpoint.load("a")
        assert record is not None
        _image_of(record).unlink()
        await stage.switcher.adopt()
        assert stage.switcher.state("a") is State.COLD
        found = stage.switcher.model("a").checkpoint
        assert found is not None and "missing" in found.invalid


def _image_of(record: Checkpoint) -> Path:
    return Path(record.directory, "inventory.img")


async def test_checkpoint_of_another_definition_is_no_checkpoint() -> None:
    async with on_stage(A) as stage:
        await stage.ask("a")
        assert await stage.result(stage.switcher.checkpoint("a")) == "done"
        stage.reload(replace(A, image="another"))
        assert stage.switcher.state("a") is State.COLD
        stage.reload(replace(A, start_timeout=1.0))
        assert stage.switcher.state("a") is State.CHECKPOINTED


async def test_nothing_is_held_after_the_last_request() -> None:
    async with on_stage(A, B) as stage:
        for name in "abab":
            await stage.ask(name)
        assert await stage.result(stage.switcher.stop("b")) == "done"
        assert Activation.load("a") is None and Activation.load("b") is None
        for name in "ab":
            model = stage.switcher.model(name)
            assert model.backend is None and model.transition is None and not model.waiters


async def test_a_job_for_each_kind_has_its_word() -> None:
    kinds: list[Job] = []
    async with on_stage(replace(A, devices=())) as stage:
        await stage.ask("a")
        s = stage.switcher
        kinds += [s.switch("a"), s.checkpoint("a"), s.park("a"), s.warmup("a"), s.stop("a")]
        assert [str(job.kind) for job in kinds] == [
            "switch", "checkpoint", "park", "warmup", "stop",
        ]  # fmt: skip
        for job in kinds:
            stage.switcher.jobs.cancel(job.number)
        for job in kinds:
            await stage.result(job)
