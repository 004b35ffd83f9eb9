# SPDX-License-Identifier: MIT
"""Whatever may happen to a switcher, in any order, on a simulated clock.

Clients come and go, starts and stops fail or take long, servers die, operators command, the
configuration and the GPUs' memory change, llmuxd itself is restarted. rules.py watches.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from llmuxd.config import Config, ModelConfig, Sleep, Tier
from llmuxd.errors import LlmuxError
from llmuxd.model import canary, vllm
from llmuxd.policy import Gpu
from llmuxd.switcher import Switcher

from .fake_units import a_config, a_model
from .rules import Rules
from .simulated import SimulatedLoop
from .watched_units import WatchedUnits

GIB = 1 << 30
NAMES = ("a", "b", "c", "d")
# Long enough for every pause, time limit and slow verb that is drawn here.
AT_LAST = 10_000.0


@dataclass(frozen=True)
class Event:
    """After `delay` seconds, `what` is done to `model`; `number` and `seconds` say how."""

    delay: float
    what: str
    model: str
    number: int
    seconds: float


@dataclass(frozen=True)
class Scenario:
    """A host and what happens to it; a start or stop takes `pace` seconds as a rule."""

    models: tuple[ModelConfig, ...]
    measured: bool
    pace: float
    events: tuple[Event, ...]


models = st.builds(
    lambda name, gpus, **more: replace(a_model(name, *gpus), **more),
    name=st.just(""),
    gpus=st.sampled_from([(0,), (0,), (0,), (1,), (0, 1)]),
    vram=st.sampled_from([None, None, 8 * GIB, 12 * GIB, 20 * GIB]),
    priority=st.sampled_from([0, 0, 0, 1]),
    max_wait=st.sampled_from([2.0, 20.0, 120.0]),
    min_active=st.sampled_from([0.0, 0.0, 15.0]),
    ttl=st.sampled_from([None, None, 30.0]),
    pin=st.sampled_from([False] * 9 + [True]),
    tier=st.sampled_from(list(Tier)),
    queue_limit=st.sampled_from([1000, 1000, 3]),
    request_timeout=st.sampled_from([1800.0, 1800.0, 40.0]),
    drain_timeout=st.sampled_from([None, 10.0]),
)


def _named(name: str, model: ModelConfig) -> ModelConfig:
    """Some hold no device: they come back beside whoever has their place."""
    free = model.tier is Tier.PARK and model.vram is None
    return replace(model, name=name, devices=() if free else None)


OPERATORS = ("switch", "checkpoint", "park", "stop", "warmup", "preload")
ACTIONS = (
    *("ask",) * 10,
    *("leave",) * 4,
    *("cancel", "slow", "slow") * 2,
    *("fail start",) * 3,
    *("fail stop", "fail reload", "mend", "die", "lost"),
    *("start by hand", "stop by hand", "reload by hand", "pin", "measure"),
    *("remove", "bring back", "change", "restart"),
    *OPERATORS,
)
# Whoever does this puts models where others are, or says that they need other room.
CROWDING = {"start by hand", "reload by hand", "change", "remove", "bring back"}


def scenarios_of(actions: Sequence[str]) -> st.SearchStrategy[Scenario]:
    """Hosts on which these happen."""
    event = st.builds(
        Event,
        delay=st.sampled_from([0.0, 0.0, 0.0, 0.3, 1.0, 4.0, 15.0, 60.0]),
        what=st.sampled_from(actions),
        model=st.sampled_from(NAMES),
        number=st.integers(0, 5),
        seconds=st.sampled_from([0.0, 0.5, 2.0, 10.0, 45.0]),
    )
    return st.builds(
        lambda found, measured, pace, events: Scenario(
            tuple(_named(name, model) for name, model in zip(NAMES, found, strict=False)),
            measured,
            pace,
            tuple(events),
        ),
        found=st.lists(models, min_size=2, max_size=len(NAMES)),
        measured=st.booleans(),
        pace=st.sampled_from([0.0, 0.0, 3.0]),
        events=st.lists(event, min_size=4, max_size=40),
    )


scenarios = scenarios_of(ACTIONS)
# A tune is many moves, so most of what happens does so in the middle of one.
tunes = scenarios_of((*ACTIONS, *("tune",) * 5))


class Drive:
    """Plays one scenario."""

    def __init__(self, scenario: Scenario):
        self._scenario = scenario
        self._config = a_config(*scenario.models)
        self._gpus = {0: Gpu(24 * GIB), 1: Gpu(24 * GIB)} if scenario.measured else {}
        self._units = WatchedUnits(self._config)
        self._units.pace = scenario.pace
        self._switcher = Switcher(self._config, self._units)
        self._switcher.measure(self._gpus)
        self.rules = Rules(self._switcher, self._units, self._gpus)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._run = asyncio.create_task(self._switcher.run())

    async def play(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        loop.before_the_clock_moves(self.rules.before_the_clock_moves)
        for event in self._scenario.events:
            await asyncio.sleep(event.delay)
            if event.model in self._config.models or event.what == "bring back":
                await self._do(event)
        await self._come_to_rest()

    async def _do(self, event: Event) -> None:
        name, seconds = event.model, event.seconds
        match event.what:
            case "ask":
                for _ in range(max(event.number - 2, 1)):
                    self.rules.ask(name, seconds)
            case "leave":
                self._leave(name, event.number)
            case "cancel":
                jobs = self._switcher.jobs.all()
                if jobs:
                    job = jobs[event.number % len(jobs)]
                    self.rules.operator(job.model)
                    self._switcher.jobs.cancel(job.number)
            case "slow":
                verb = ("start", "stop", "reload", "reload", "stop", "start")[event.number]
                self._units.takes[f"{verb} {name}"] = seconds
            case "fail start" | "fail stop" | "fail reload":
                self._units.break_verb(event.what.removeprefix("fail "), name, event.number)
            case "mend":
                for verb in ("start", "stop", "reload"):
                    self._units.mend_verb(verb, name)
            case "die":
                self._units.kill(name)
            case "lost":
                backend = self._switcher.model(name).backend
                if backend is not None:
                    self.rules.excuse(name)
                    await self._switcher.lost(name, backend)
            case "start by hand":
                self._spawn(self._units.start_by_hand(name))
            case "stop by hand":
                self._spawn(self._units.stop_by_hand(name))
            case "reload by hand":
                self._spawn(self._units.reload_by_hand(name))
            case "pin":
                self._switcher.pin(name, event.number > 3)
            case "measure":
                for number in self._gpus:
                    self._gpus[number] = Gpu(24 * GIB, event.number * GIB)
                self._switcher.measure(dict(self._gpus))
                self.rules.measured()
            case "remove":
                self._reload({n: m for n, m in self._config.models.items() if n != name})
            case "bring back":
                known = {model.name: model for model in self._scenario.models}
                if name in known:
                    self._reload(self._config.models | {name: known[name]})
            case "change":
                changed = replace(self._config.models[name], gpus=(event.number % 2,))
                self._reload(self._config.models | {name: changed})
            case "restart":
                await self._restart()
            case _:
                self.rules.operator(name)
                with contextlib.suppress(LlmuxError):
                    getattr(self._switcher, event.what)(name)

    def _leave(self, name: str, number: int) -> None:
        """One of those who are there, or all."""
        tasks = [request.task for request in self.rules.requests if request.model == name]
        there = [task for task in tasks if task is not None and not task.done()]
        for task in there if number > 2 else there[number : number + 1]:
            task.cancel()

    def _reload(self, models: dict[str, ModelConfig]) -> None:
        if models:
            self._config = replace(self._config, models=models)
            self._units.config = Config(self._config.path, self._config.models | self._old())
            self._switcher.reload(self._config)
            self.rules.reconfigured()

    def _old(self) -> dict[str, ModelConfig]:
        """What still runs by a definition that is gone: its helper remembers it."""
        known = {model.name: model for model in self._scenario.models}
        return {n: known[n] for n in self._units.running() if n not in self._config.models}

    async def _restart(self) -> None:
        """llmuxd is killed: connections break, units and their jobs go on."""
        await self._shut_down()
        for request in self.rules.requests:
            if request.task is not None:
                request.task.cancel()
        self._switcher = Switcher(self._config, self._units)
        self._switcher.measure(self._gpus)
        self.rules.take_over(self._switcher)
        await self._switcher.adopt()
        self._run = asyncio.create_task(self._switcher.run())

    async def _shut_down(self) -> None:
        await self._switcher.close()
        await self._run
        self._units.forget_poised()

    async def _come_to_rest(self) -> None:
        """All that was broken is mended; then everybody must be answered, and nothing be left."""
        self._units.takes.clear()
        for name in NAMES:
            for verb in ("start", "stop", "reload"):
                self._units.mend_verb(verb, name)
            if name in self._config.models:
                self._switcher.pin(name, False)
        await asyncio.sleep(AT_LAST)
        self.rules.at_the_end()
        if not {event.what for event in self._scenario.events} & CROWDING:
            self.rules.nobody_is_crowded()
        self.rules.watching = False
        for job in self._switcher.jobs.all():
            self._switcher.jobs.cancel(job.number)
        for name in self._config.models:
            self._switcher.stop(name)
        await asyncio.sleep(AT_LAST)
        self.rules.watching = True
        if running := self._units.running():
            self.rules.breaks(8, f"{running} run though all were stopped")
        await self._shut_down()
        await self._units.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        left = sorted(os.listdir(os.environ["RUNTIME_DIRECTORY"]))
        # How a model came up last is told of one that is out, too.
        if left := [name for name in left if not name.endswith(".in.json")]:
            self.rules.breaks(8, f"{left} are left behind")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(work))


def broken_rules(scenario: Scenario) -> list[str]:
    """Play it; what rules were broken."""

    async def work() -> list[str]:
        drive = Drive(scenario)
        await drive.play()
        return drive.rules.broken

    with (
        tempfile.TemporaryDirectory() as directory,
        pytest.MonkeyPatch.context() as patch,
        asyncio.Runner(loop_factory=SimulatedLoop) as runner,
    ):
        Path(directory, "run").mkdir()
        patch.setenv("STATE_DIRECTORY", f"{directory}/state")
        patch.setenv("RUNTIME_DIRECTORY", f"{directory}/run")
        patch.setattr(vllm, "offers", lambda port, extension: (Sleep.LEVEL_2, Sleep.LEVEL_1))
        patch.setattr(canary, "of_run", lambda run: "a word")
        # Nobody pulls the plug on a simulated disk.
        patch.setattr(os, "fsync", lambda descriptor: None)
        return runner.run(work())
