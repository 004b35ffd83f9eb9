# SPDX-License-Identifier: MIT
"""A model leaves and comes back in each way that its engine has, and the best one is kept."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from llmuxd import files
from llmuxd.config import Engine, ModelConfig, Sleep, Snapshot, Tier
from llmuxd.costs import Cost
from llmuxd.errors import LlmuxError, NotSupported
from llmuxd.jobs import Job
from llmuxd.model import canary, vllm
from llmuxd.model.server import WrongAnswer
from llmuxd.model.tuning import Figures, LettingGo, Tuning, Why
from llmuxd.state import State
from llmuxd.switcher import tuning
from llmuxd.switcher.costbook import CostBook

from .fake_units import PARKED_MEMORY, FakeUnits, Gate, a_config, a_model
from .simulated import simulated
from .stage import Stage, on_stage

DISK, PARK = Tier.CHECKPOINT, Tier.PARK
ALL = (Sleep.LEVEL_2, Sleep.KV, Sleep.OFF, Sleep.LEVEL_1)
# As on an H100: level 1 parks best, level 2 makes the best images.
BACKS = {
    "checkpoint 2": 4.2, "checkpoint kv": 7.3, "checkpoint off": 19.7, "checkpoint 1": 10.4,
    "park 2": 1.8, "park kv": 1.6, "park off": 6.1, "park 1": 1.3,
}  # fmt: skip
BACK = ["start a", "stop a"]


class Server:
    """What the model's server says when it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.offers: tuple[Sleep, ...] = ALL
        self.answer = '{"text": " dog"}'
        self.away = False
        monkeypatch.setattr(vllm, "offers", self._offers)
        monkeypatch.setattr(canary, "of_run", lambda run: self.answer)

    def _offers(self, port: int, *, extension: bool) -> tuple[Sleep, ...]:
        if self.away:
            raise WrongAnswer("it does not answer /is_sleeping: refused")
        return self.offers


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


async def tuned(stage: Stage, result: str = "done") -> Job:
    job = stage.switcher.tune("a")
    assert await stage.result(job) == result
    return job


def made() -> Tuning:
    record = Tuning.load("a")
    assert record is not None
    return record


def rows() -> dict[tuple[str, str], Figures]:
    return {(each.tier.value, each.sleep.value): each for each in made().figures}


def moves(units: FakeUnits, verb: str) -> int:
    return units.log.count(f"{verb} a")


@simulated
async def test_each_way_is_measured_and_the_best_is_kept() -> None:
    async with on_stage(a_model("a")) as stage:
        stage.units.backs = BACKS
        stage.units.takes = {"stop a": 3.0, "reload a": 0.5}
        steps: list[str] = []
        stage.switcher.jobs.on_changed = lambda job: steps.append(job.phase)
        await tuned(stage)
        assert made().chosen == {DISK: Sleep.LEVEL_2, PARK: Sleep.LEVEL_1}
        found = rows()
        assert {f"{tier} {sleep}": each.back for (tier, sleep), each in found.items()} == BACKS
        one, other = found["park", "1"], found["checkpoint", "2"]
        assert (one.out, one.size, one.rounds, one.failed) == (0.5, PARKED_MEMORY, 3, "")
        assert (other.out, other.size, other.rounds) == (3.0, 3, 3)
        for tier, sleep in ((DISK, Sleep.LEVEL_2), (PARK, Sleep.LEVEL_1)):
            assert stage.switcher.letting_go("a")[tier] == LettingGo(sleep, Why.TUNED)
        assert stage.switcher.why_no_tuning("a") == ""
        assert "image_sleep 2, 1 of 3" in steps and "park_sleep 1, 3 of 3: serving" in steps
        assert "warming up: starting" in steps


@simulated
async def test_level_1_is_last_for_the_memory_that_it_pins() -> None:
    async with on_stage(a_model("a")) as stage:
        await tuned(stage)
    assert [(each.tier, each.sleep) for each in made().figures] == [
        (tier, sleep) for sleep in ALL for tier in (DISK, PARK)
    ]


@simulated
async def test_the_lasting_image_is_of_a_server_that_went_through_nothing() -> None:
    async with on_stage(a_model("a")) as stage:
        await tuned(stage)
        assert stage.units.log[-4:] == ["reload a", "stop a", *BACK]
        assert stage.switcher.state("a") is State.CHECKPOINTED
        record = stage.switcher.model("a").checkpoint
        assert record is not None and record.valid and not record.trial


@simulated
async def test_a_way_that_is_far_behind_is_measured_once() -> None:
    async with on_stage(a_model("a")) as stage:
        stage.units.backs = BACKS
        await tuned(stage)
    assert {way: each.rounds for way, each in rows().items() if each.rounds != 3} == {
        ("checkpoint", "off"): 1, ("park", "off"): 1, ("checkpoint", "1"): 1,
    }  # fmt: skip


@simulated
async def test_a_way_that_comes_back_as_another_is_out() -> None:
    """It would have been the best."""
    async with on_stage(a_model("a")) as stage:
        stage.units.backs = BACKS
        stage.units.broken = {"checkpoint 2", "park 1"}
        await tuned(stage)
        assert made().chosen == {DISK: Sleep.KV, PARK: Sleep.KV}
        found = rows()
        assert found["checkpoint", "2"].failed == "the restore failed: its canary says no"
        assert "did not come back from memory" in found["park", "1"].failed
        assert found["park", "1"].rounds == 0
        assert stage.switcher.state("a") is State.CHECKPOINTED
        await stage.ask("a")


@simulated
async def test_where_every_way_is_out_the_default_stays_and_that_is_said() -> None:
    async with on_stage(a_model("a")) as stage:
        stage.units.broken = {*BACKS}
        job = await tuned(stage, "failed")
        why = "in no way of image_sleep; in way 2: the restore failed: its canary says no"
        assert why in str(job.error)
        assert made().chosen == {} and all(each.failed for each in made().figures)
        assert stage.switcher.letting_go("a")[PARK] == LettingGo(Sleep.LEVEL_1, Why.DEFAULT)
        assert stage.switcher.state("a") is State.CHECKPOINTED


@simulated
async def test_a_unit_that_does_not_park_is_out_of_that_tier_only() -> None:
    async with on_stage(a_model("a")) as stage:
        stage.units.backs = BACKS
        stage.units.break_verb("reload", "a")
        job = await tuned(stage, "failed")
        assert "in no way of park_sleep; in way 1: 'a' could not be parked" in str(job.error)
        assert stage.switcher.state("a") is State.CHECKPOINTED
        assert made().chosen == {DISK: Sleep.LEVEL_2}
        assert "could not be parked" in rows()["park", "kv"].failed


@simulated
async def test_what_the_memory_has_not_the_room_for_is_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmuxd.memory.available", lambda: 60 << 30)
    monkeypatch.setattr("llmuxd.memory.spare", lambda: 30 << 30)
    async with on_stage(a_model("a", 0, 1)) as stage:
        stage.switcher._book.learn_need("a", 16 << 30)
        await tuned(stage)
        for way in (("park", "off"), ("checkpoint", "off"), ("park", "1"), ("checkpoint", "1")):
            assert "it holds 34.4 GB of its GPUs, and the host has 32.2" in rows()[way].failed
        assert [each.rounds for each in made().figures] == [3, 3, 3, 3, 0, 0, 0, 0]


@simulated
async def test_an_image_is_read_ahead_as_when_another_one_leaves_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    async with on_stage(a_model("a")) as stage:
        starts = stage.units.log.count

        def read_ahead(_: object, size: int) -> None:
            read.append(starts("start a"))

        monkeypatch.setattr("llmuxd.readahead.read_ahead", read_ahead)
        await tuned(stage)
    # Before each start, or with it, but for the first and the last one.
    assert len(read) == moves(stage.units, "start") - 2 == 12
    assert all(number in (count, count + 1) for number, count in enumerate(read, start=2)), read


@simulated
async def test_what_the_configuration_says_is_not_measured() -> None:
    async with on_stage(replace(a_model("a"), park_sleep=Sleep.OFF)) as stage:
        await tuned(stage)
        assert {each.tier for each in made().figures} == {DISK}
        assert stage.switcher.letting_go("a")[PARK] == LettingGo(Sleep.OFF, Why.CONFIG)
        assert moves(stage.units, "reload") == 0


@simulated
async def test_an_image_from_before_is_kept_where_only_parking_is_measured() -> None:
    model = replace(a_model("a"), image_sleep=Sleep.LEVEL_2)
    async with on_stage(model) as stage:
        assert await stage.result(stage.switcher.warmup("a")) == "done"
        before = stage.switcher.model("a").checkpoint
        stage.units.log.clear()
        await tuned(stage)
        assert {each.tier for each in made().figures} == {PARK}
        assert moves(stage.units, "start") == moves(stage.units, "stop") == 1
        assert stage.units.log[-1] == "stop a"
        assert stage.switcher.model("a").checkpoint == before is not None


@simulated
async def test_a_live_model_keeps_what_it_came_to() -> None:
    async with on_stage(replace(a_model("a"), snapshot=Snapshot.LIVE)) as stage:
        await tuned(stage)
        assert {each.tier for each in made().figures} == {PARK}
        assert stage.units.log[0] == "start a" and stage.units.log[-1] == "stop a"
        assert moves(stage.units, "start") == moves(stage.units, "stop") == 1


@simulated
async def test_what_a_live_model_came_to_is_on_disk_before_anything_is_tried() -> None:
    async with on_stage(replace(a_model("a"), snapshot=Snapshot.LIVE)) as stage:
        await stage.ask("a")
        await tuned(stage)
        assert stage.units.log[:4] == ["start a", "stop a", "start a", "reload a"]
        assert stage.units.log[-1] == "stop a"


@simulated
async def test_a_live_model_that_is_parked_takes_its_turn_on_the_gpu_for_that() -> None:
    live = replace(a_model("a"), snapshot=Snapshot.LIVE, tier=PARK)
    async with on_stage(live, a_model("b")) as stage:
        for name in ("a", "b"):
            await stage.ask(name)
        assert stage.switcher.state("a") is State.PARKED
        begin = len(stage.units.log)
        await tuned(stage)
        assert stage.units.log[begin:][:4] == ["stop b", "reload a", "stop a", "start a"]


@simulated
async def test_one_that_could_not_be_written_is_not_risked() -> None:
    async with on_stage(replace(a_model("a"), snapshot=Snapshot.LIVE)) as stage:
        await stage.ask("a")
        stage.units.break_verb("stop", "a")
        job = await tuned(stage, "failed")
        assert "could not be stopped" in str(job.error) or "would not stop" in str(job.error)
        assert moves(stage.units, "reload") == 0
        assert stage.switcher.state("a") is State.SERVING


@simulated
async def test_a_live_model_that_does_not_wake_goes_back_to_that() -> None:
    async with on_stage(replace(a_model("a"), snapshot=Snapshot.LIVE)) as stage:
        await stage.ask("a")
        stage.units.broken = {"park kv"}
        await tuned(stage)
        assert "did not come back" in rows()["park", "kv"].failed
        assert stage.units.fell_back == ["a"]
        record = stage.switcher.model("a").checkpoint
        assert record is not None and record.valid and record.live


@simulated
async def test_one_without_checkpoints_serves_in_the_end() -> None:
    async with on_stage(replace(a_model("a"), checkpoint=False)) as stage:
        await tuned(stage)
        assert stage.switcher.state("a") is State.SERVING
        # Anew: what it lets go of is read when it starts.
        assert stage.units.log[-2:] == ["stop a", "start a"]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (replace(a_model("a"), engine=Engine.LLAMA_SERVER), "engine llama-server has nothing"),
        (replace(a_model("a"), engine=Engine.GENERIC), "engine generic has nothing"),
        (replace(a_model("a"), devices=()), "without a GPU"),
    ],
)
def test_an_engine_with_nothing_to_choose_is_warmed_up(model: ModelConfig, why: str) -> None:
    @simulated
    async def play() -> None:
        async with on_stage(model) as stage:
            told: list[str] = []
            stage.switcher.jobs.on_changed = lambda job: told.append(job.phase)
            await tuned(stage)
            assert why in told[0] and told[0].startswith("nothing to tune: ")
            assert why in stage.switcher.why_no_tuning("a")
            assert stage.units.log == BACK and Tuning.load("a") is None

    play()


@simulated
async def test_a_vllm_without_its_sleep_mode_too(server: Server) -> None:
    async with on_stage(a_model("a")) as stage:
        server.offers = ()
        await tuned(stage)
        assert "sleep mode is off" in stage.switcher.why_no_tuning("a")
        assert stage.units.log == BACK and made().figures == ()


@simulated
async def test_what_it_took_meanwhile_is_not_what_it_takes_as_a_rule() -> None:
    async with on_stage(a_model("a")) as stage:
        await tuned(stage)
        costs = stage.switcher.costs("a")
        assert {*costs} <= {Cost.COLD, Cost.OUT, Cost.GAP, Cost.DRAIN}
        await stage.ask("a")
        assert not stage.switcher.model("a").tried


@simulated
async def test_nor_is_what_it_took_to_leave_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """For others' sake or in the end: it never leaves then as it does with a lasting image."""
    learnt: list[tuple[str, Cost]] = []
    async with on_stage(a_model("a")) as stage:
        model = stage.switcher.model("a")

        def learn(book: CostBook, name: str, cost: Cost, seconds: float) -> None:
            learnt.extend([(name, cost)] if model.tried else [])

        monkeypatch.setattr(CostBook, "learn", learn)
        await tuned(stage)
    assert learnt == []


# Others


@simulated
async def test_others_have_their_turns_meanwhile() -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        stage.units.backs = BACKS
        gate = stage.units.hold("reload", "a")
        job = stage.switcher.tune("a")
        await gate.reached.wait()
        client = stage.client("b")
        await stage.settle()
        gate.open()
        await client.admitted.wait()
        assert stage.switcher.jobs.all() == [job]
        await client.finish()
        assert await stage.result(job) == "done"
        assert made().chosen == {DISK: Sleep.LEVEL_2, PARK: Sleep.LEVEL_1}


@simulated
async def test_its_own_requests_are_served_and_never_cut() -> None:
    async with on_stage(a_model("a")) as stage:
        gate = stage.units.hold("stop", "a")
        job = stage.switcher.tune("a")
        await gate.reached.wait()
        client = stage.client("a")
        gate.open()
        await client.admitted.wait()
        await stage.until_state("a", State.DRAINING)
        before = list(stage.units.log)
        await stage.settle()
        assert stage.units.log == before and not client.cut
        await client.finish()
        assert await stage.result(job) == "done"


async def _comings(*clients: str) -> int:
    """How often a was started in its tuning, when these clients came while it began."""
    async with on_stage(a_model("a"), a_model("b")) as stage:
        stage.units.backs = BACKS
        gate = stage.units.hold("start", "a")
        job = stage.switcher.tune("a")
        await gate.reached.wait()
        for name in clients:
            stage.client(name).end.set()
        gate.open()
        assert await stage.result(job) == "done"
        assert stage.served == [*clients]
        return moves(stage.units, "start")


@simulated
async def test_it_is_not_sent_away_before_it_was_measured_for_what_it_came() -> None:
    """Who waits for its place gets that when it leaves, and its next coming is measured."""
    assert await _comings() == await _comings("b") == await _comings("b", "b")


@simulated
async def test_it_stays_until_its_server_has_said_what_it_offers(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        gate = stage.units.hold("start", "a")
        asked = Gate()

        async def slowly(function: Callable[..., object], *args: object) -> object:
            if function is tuning._offers:
                await asked.passed()
            return function(*args)

        monkeypatch.setattr(asyncio, "to_thread", slowly)
        job = stage.switcher.tune("a")
        await gate.reached.wait()
        client = stage.client("b")
        gate.open()
        await asked.reached.wait()
        await stage.settle()
        assert stage.switcher.state("a") is State.SERVING
        asked.open()
        await client.admitted.wait()
        await client.finish()
        assert await stage.result(job) == "done"


@simulated
async def test_two_are_measured_by_turns() -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        stage.units.backs = BACKS
        jobs = [stage.switcher.tune(name) for name in ("a", "b")]
        assert [await stage.result(job) for job in jobs] == ["done", "done"]
        assert made().chosen == {DISK: Sleep.LEVEL_2, PARK: Sleep.LEVEL_1}


# The end that was not to be


@pytest.mark.parametrize("verb", ["start", "stop", "reload"])
@pytest.mark.parametrize("which", [1, 2, 5])
def test_a_stop_wins(verb: str, which: int) -> None:
    @simulated
    async def play() -> None:
        async with on_stage(a_model("a"), a_model("b")) as stage:
            for _ in range(1, which):
                stage.units.hold(verb, "a").open()
            gate = stage.units.hold(verb, "a")
            job = stage.switcher.tune("a")
            await gate.reached.wait()
            stop = stage.switcher.stop("a")
            await stage.settle()
            gate.open()
            assert await stage.result(stop) == "done"
            await stage.settle()
            assert job.result == "failed" and "was stopped while it was tuned" in str(job.error)
            assert stage.switcher.state("a") in (State.COLD, State.CHECKPOINTED)
            assert not stage.switcher.model("a").waiters and not stage.switcher.model("a").tried
            assert Tuning.load("a") is None
            log = list(stage.units.log)
            await stage.ask("b")
            await stage.settle()
            assert [line for line in stage.units.log[len(log) :] if line.endswith(" a")] == []
            await stage.ask("a")

    play()


@simulated
async def test_a_stop_wins_while_it_waits_for_its_place() -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        client = stage.client("b")
        await client.admitted.wait()
        job = stage.switcher.tune("a")
        await stage.settle()
        assert await stage.result(stage.switcher.stop("a")) == "done"
        assert job.result == "failed"
        await client.finish()
        await stage.settle()
        assert moves(stage.units, "start") == 0


@simulated
async def test_a_stop_wins_over_its_warming_up() -> None:
    async with on_stage(a_model("a")) as stage:
        # Three for each of four images, and the first.
        for _ in range(13):
            stage.units.hold("start", "a").open()
        gate = stage.units.hold("start", "a")
        job = stage.switcher.tune("a")
        await gate.reached.wait()
        assert job.step == "warming up"
        stop = stage.switcher.stop("a")
        await stage.settle()
        gate.open()
        assert await stage.result(stop) == "done"
        log = list(stage.units.log)
        await stage.settle()
        assert job.result == "failed" and stage.units.log == log
        assert stage.switcher.state("a") is State.COLD
        # What was measured by then is kept.
        assert made().chosen


@simulated
async def test_what_was_measured_so_far_is_told() -> None:
    async with on_stage(a_model("a")) as stage:
        await tuned(stage)
        old = stage.switcher.figures("a")
        for _ in range(3):
            stage.units.hold("reload", "a").open()
        gate = stage.units.hold("reload", "a")
        job = stage.switcher.tune("a")
        await gate.reached.wait()
        assert [each.tier for each in stage.switcher.figures("a")] == [DISK]
        await stage.cancel(job)
        gate.open()
        await stage.until_idle()
        await stage.settle()
        assert [each.tier for each in stage.switcher.figures("a")] == [DISK]
        # Nothing was chosen by it.
        assert made().figures == old and stage.switcher.letting_go("a")[PARK].why is Why.TUNED
        await tuned(stage)
        assert stage.switcher.figures("a") == made().figures


@pytest.mark.parametrize("verb", ["start", "stop", "reload"])
@pytest.mark.parametrize("which", [1, 2])
def test_one_that_is_cancelled_leaves_nothing_half(verb: str, which: int) -> None:
    @simulated
    async def play() -> None:
        async with on_stage(a_model("a"), a_model("b")) as stage:
            if which == 2:
                stage.units.hold(verb, "a").open()
            gate = stage.units.hold(verb, "a")
            job = stage.switcher.tune("a")
            await gate.reached.wait()
            begun = list(stage.units.log)
            stage.switcher.jobs.cancel(job.number)
            assert await stage.result(job) == "canceled"
            gate.open()
            await stage.until_idle()
            await stage.settle()
            assert stage.units.log == begun
            assert Tuning.load("a") is None and not stage.switcher.model("a").tried
            assert not stage.switcher.model("a").waiters
            # What was taken to be measured is not what is kept.
            await stage.ask("a")
            assert await stage.result(stage.switcher.checkpoint("a")) == "done"
            record = stage.switcher.model("a").checkpoint
            assert record is not None and not record.trial
            await stage.ask("b")

    play()


@simulated
async def test_a_warm_up_takes_the_place_of_what_was_left_of_a_measurement() -> None:
    async with on_stage(a_model("a")) as stage:
        gate = stage.units.hold("stop", "a")
        job = stage.switcher.tune("a")
        await gate.reached.wait()
        stage.switcher.jobs.cancel(job.number)
        gate.open()
        await stage.until_state("a", State.CHECKPOINTED)
        record = stage.switcher.model("a").checkpoint
        assert record is not None and record.trial
        assert await stage.result(stage.switcher.warmup("a")) == "done"
        record = stage.switcher.model("a").checkpoint
        assert record is not None and not record.trial


@simulated
async def test_the_whole_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with on_stage(a_model("a")) as stage:
        stage.units.backs = BACKS
        stage.units.pace = 400.0
        await tuned(stage)
        assert "60 min were over" in rows()["park", "1"].failed
        # Of the ways to park, the default was not measured: it may be better than those that were.
        assert made().chosen == {DISK: Sleep.LEVEL_2}
        assert stage.switcher.letting_go("a")[PARK] == LettingGo(Sleep.LEVEL_1, Why.DEFAULT)


@simulated
async def test_a_way_for_which_no_time_was_did_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "LIMIT", -1.0)
    async with on_stage(a_model("a")) as stage:
        await tuned(stage)
        assert made().chosen == {} and all(each.failed for each in made().figures)


@simulated
async def test_a_full_disk_keeps_no_half_of_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    async with on_stage(a_model("a")) as stage:
        files.state_root().mkdir()
        (files.state_root() / "tunings").touch()
        job = await tuned(stage, "failed")
        assert "cannot be kept" in str(job.error)
        assert stage.switcher.model("a").tuning is None


@simulated
async def test_a_model_that_became_another_meanwhile_is_not_chosen_for() -> None:
    async with on_stage(a_model("a")) as stage:
        gate = stage.units.hold("reload", "a")
        job = stage.switcher.tune("a")
        await gate.reached.wait()
        stage.reload(replace(a_model("a"), args=("--other",)))
        gate.open()
        assert await stage.result(job) == "failed"
        assert "became another" in str(job.error) and Tuning.load("a") is None


@simulated
async def test_a_model_is_tuned_once_at_a_time() -> None:
    async with on_stage(a_model("a")) as stage:
        job = stage.switcher.tune("a")
        with pytest.raises(LlmuxError, match="being tuned already"):
            stage.switcher.tune("a")
        assert await stage.result(job) == "done"
        await tuned(stage)


@simulated
async def test_one_that_leaves_the_configuration_meanwhile_is_gone() -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        gate = stage.units.hold("reload", "a")
        job = stage.switcher.tune("a")
        await gate.reached.wait()
        stage.reload(a_model("b"))
        stage.units.config = a_config(a_model("a"), a_model("b"))
        gate.open()
        assert await stage.result(job) == "failed"
        assert Tuning.load("a") is None


def test_without_a_canary_nobody_could_tell() -> None:
    @simulated
    async def play() -> None:
        async with on_stage(replace(a_model("a"), canary=False)) as stage:
            with pytest.raises(NotSupported, match="canary: false"):
                stage.switcher.tune("a")

    play()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda server: setattr(server, "answer", ""), "it refuses its canary"),
        (lambda server: setattr(server, "away", True), "does not answer /is_sleeping"),
    ],
)
def test_a_server_that_does_not_answer_is_not_measured(
    server: Server, change: Callable[[Server], None], words: str
) -> None:
    change(server)

    @simulated
    async def play() -> None:
        async with on_stage(a_model("a")) as stage:
            job = await tuned(stage, "failed")
            assert words in str(job.error)
            assert Tuning.load("a") is None

    play()


@simulated
async def test_a_record_of_another_definition_is_ignored_and_said() -> None:
    async with on_stage(a_model("a")) as stage:
        await tuned(stage)
        stage.reload(replace(a_model("a"), args=("--other",)))
        assert "definition in llmux.yaml changed" in stage.switcher.why_no_tuning("a")
        assert stage.switcher.letting_go("a")[PARK].why is Why.DEFAULT
