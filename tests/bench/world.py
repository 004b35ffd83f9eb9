# SPDX-License-Identifier: MIT
"""GPUs, models and clients on a simulated clock.

The engines do no magic: the requests in flight on a GPU share it equally, and a batch takes as
long as its requests one after the other. So the work of a trace is the same under every
scheduler, and what differs is what is lost between.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import Protocol

from llmuxd.policy import Decision, Stage

from .arrivals import JITTER, Arrival, Trace


@dataclass(eq=False)
class SimModel:
    """One model: who waits, who is served, since when."""

    name: str
    gpus: frozenset[int]
    stage: Stage = Stage.OUT
    waiting: deque[Arrival] = field(default_factory=deque)
    # Served so far is counted for all in flight alike; each ends when the count reaches its end.
    served: float = 0.0
    ends: list[tuple[float, int, Arrival]] = field(default_factory=list)
    draining: int = 0
    in_since: float = 0.0
    idle_since: float = 0.0
    draining_since: float = 0.0
    leaving_since: float = 0.0
    coming_since: float = 0.0


class Scheduler(Protocol):
    """What is compared."""

    def admits(self, world: "World", model: SimModel) -> bool:
        """Whether the first who waits for this model, which is in, may be served now."""

    def decide(self, world: "World") -> Decision:
        """What to do now."""

    def came(self, model: SimModel, seconds: float) -> None:
        """It took so long to get in."""

    def drained(self, model: SimModel, requests: int, seconds: float) -> None:
        """It took so long to end these requests."""

    def left(self, model: SimModel, seconds: float) -> None:
        """It took so long to get out."""

    def asked(self, model: SimModel, now: float) -> None:
        """A request arrived."""

    def changed(self, model: SimModel) -> None:
        """Something of it is not as it was."""


class World:
    """Plays one trace to the last answer. Times are in seconds."""

    def __init__(self, trace: Trace, scheduler: Scheduler):
        self.trace = trace
        self.now = 0.0
        self.models = {name: SimModel(name, gpus) for name, gpus in trace.models.items()}
        self.waits: list[float] = []
        self.serving = 0.0
        self.switches = 0
        # All that wait, of all models, in the order of arrival.
        self.line: deque[Arrival] = deque()
        self._scheduler = scheduler
        self._random = Random(f"{trace.name} {trace.seed}")
        self._arrivals = deque(trace.arrivals)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._flying: dict[str, SimModel] = {}
        self._on_gpu = dict.fromkeys(trace.used, 0)
        self._again_at = inf

    @property
    def share(self) -> float:
        """Of all GPUs' time until the last answer, the part that was spent serving."""
        return self.serving / (len(self._on_gpu) * self.now)

    def holders(self) -> list[SimModel]:
        """The models that occupy GPUs."""
        return [model for model in self.models.values() if model.stage is not Stage.OUT]

    def run(self) -> None:
        """Until everybody is served."""
        while self._arrivals or self.line or self._flying:
            when = min(self._next_arrival(), self._next_timer(), self._next_end(), self._again_at)
            assert when < inf, f"{self.trace.name}: {len(self.line)} wait for ever"
            self._advance(max(when, self.now))
            self._happen()
            self._admit()
            self._obey(self._scheduler.decide(self))

    def _next_arrival(self) -> float:
        return self._arrivals[0].at if self._arrivals else inf

    def _next_timer(self) -> float:
        return self._timers[0][0] if self._timers else inf

    def _next_end(self) -> float:
        return min((self._end_of(model) for model in self._flying.values()), default=inf)

    def _end_of(self, model: SimModel) -> float:
        return self.now + max(model.ends[0][0] - model.served, 0.0) / self._rate(model)

    def _rate(self, model: SimModel) -> float:
        return 1 / max(self._on_gpu[gpu] for gpu in model.gpus)

    def _advance(self, when: float) -> None:
        seconds = when - self.now
        self.serving += seconds * sum(1 for count in self._on_gpu.values() if count)
        for model in self._flying.values():
            model.served += seconds * self._rate(model)
        self.now = when

    def _happen(self) -> None:
        while self._arrivals and self._arrivals[0].at <= self.now:
            self._arrive(self._arrivals.popleft())
        while self._timers and self._timers[0][0] <= self.now:
            heappop(self._timers)[2]()
        for model in list(self._flying.values()):
            while model.ends and model.ends[0][0] <= model.served + 1e-9:
                self._answer(model)

    def _arrive(self, arrival: Arrival) -> None:
        model = self.models[arrival.model]
        self._scheduler.asked(model, self.now)
        model.waiting.append(arrival)
        self.line.append(arrival)
        self._scheduler.changed(model)

    def _answer(self, model: SimModel) -> None:
        arrival = heappop(model.ends)[2]
        if arrival.more:
            self._ask_more(arrival)
        for gpu in model.gpus:
            self._on_gpu[gpu] -= 1
        if not model.ends:
            del self._flying[model.name]
            model.idle_since = self.now
            if model.stage is Stage.DRAINING:
                self._leave(model)
        self._scheduler.changed(model)

    def _ask_more(self, arrival: Arrival) -> None:
        following = replace(arrival, at=self.now + arrival.think, more=arrival.more - 1)
        insort(self._arrivals, following, key=lambda arrival: arrival.at)

    def _admit(self) -> None:
        entered = True
        while entered:
            entered = False
            for model in self.holders():
                while model.waiting and self._may_enter(model):
                    self._enter(model)
                    entered = True

    def _may_enter(self, model: SimModel) -> bool:
        return model.stage is Stage.IN and self._scheduler.admits(self, model)

    def _enter(self, model: SimModel) -> None:
        arrival = model.waiting.popleft()
        if self.line[0] is arrival:
            self.line.popleft()
        else:
            self.line.remove(arrival)
        self.waits.append(self.now - arrival.at)
        heappush(model.ends, (model.served + arrival.work, len(self.waits), arrival))
        for gpu in model.gpus:
            self._on_gpu[gpu] += 1
        self._flying[model.name] = model
        self._scheduler.changed(model)

    def _obey(self, decision: Decision) -> None:
        for name in decision.call_back:
            assert self.models[name].stage is Stage.DRAINING
            self._stage(self.models[name], Stage.IN)
        for name in decision.drain:
            model = self.models[name]
            assert model.stage is Stage.IN
            model.draining_since, model.draining = self.now, len(model.ends)
            self._stage(model, Stage.DRAINING)
            if not model.ends:
                self._leave(model)
        for name in decision.activate:
            self._come(self.models[name])
        self._again_at = inf if decision.again_at is None else decision.again_at
        if decision.call_back:
            self._admit()

    def _come(self, model: SimModel) -> None:
        assert model.stage is Stage.OUT
        self.switches += 1
        model.coming_since = self.now
        self._stage(model, Stage.COMING)
        self._after(self.trace.switch.back, lambda: self._came(model))

    def _came(self, model: SimModel) -> None:
        model.in_since = model.idle_since = self.now
        self._scheduler.came(model, self.now - model.coming_since)
        self._stage(model, Stage.IN)

    def _leave(self, model: SimModel) -> None:
        self._scheduler.drained(model, model.draining, self.now - model.draining_since)
        model.leaving_since = self.now
        self._stage(model, Stage.LEAVING)
        self._after(self.trace.switch.out, lambda: self._left(model))

    def _left(self, model: SimModel) -> None:
        self._scheduler.left(model, self.now - model.leaving_since)
        self._stage(model, Stage.OUT)

    def _stage(self, model: SimModel, stage: Stage) -> None:
        model.stage = stage
        self._scheduler.changed(model)

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        seconds *= self._random.uniform(1 - JITTER, 1 + JITTER)
        heappush(self._timers, (self.now + seconds, self.switches * 2 + len(self._timers), then))
