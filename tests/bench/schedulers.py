# SPDX-License-Identifier: MIT
"""Ours, and the two that it is held against."""

from llmuxd.costs import Cost, Costs
from llmuxd.policy import Board, Decision, ModelView, Stage

from .arrivals import Trace
from .world import SimModel, World


class Fifo:
    """First come, first served, to the letter: a request is let in after all before it.

    Neighbours in the line that want the same model are served together.
    """

    def admits(self, world: World, model: SimModel) -> bool:
        """Only the first of all that want its GPUs."""
        for arrival in world.line:
            if arrival.model == model.name:
                return True
            if world.models[arrival.model].gpus & model.gpus:
                return False
        return False

    def decide(self, world: World) -> Decision:
        """Make way for the first in the line; on several GPUs, for the first of each."""
        activate: list[str] = []
        drain: list[str] = []
        claimed: set[int] = set()
        for arrival in world.line:
            model = world.models[arrival.model]
            if model.gpus & claimed:
                claimed |= model.gpus
            else:
                claimed |= model.gpus
                if model.stage is Stage.OUT:
                    self._make_way(world, model, activate, drain)
            if claimed == world.trace.used:
                break
        return Decision(tuple(activate), tuple(dict.fromkeys(drain)))

    def _make_way(
        self, world: World, model: SimModel, activate: list[str], drain: list[str]
    ) -> None:
        blockers = [other for other in world.holders() if other.gpus & model.gpus]
        if not blockers:
            activate.append(model.name)
        elif all(self._gives_way(other) for other in blockers):
            drain += [other.name for other in blockers if other.stage is Stage.IN]

    def _gives_way(self, model: SimModel) -> bool:
        return True

    def came(self, model: SimModel, seconds: float) -> None:
        """Learns nothing."""

    def drained(self, model: SimModel, requests: int, seconds: float) -> None:
        """Learns nothing."""

    def left(self, model: SimModel, seconds: float) -> None:
        """Learns nothing."""

    def asked(self, model: SimModel, now: float) -> None:
        """Learns nothing."""

    def changed(self, model: SimModel) -> None:
        """Remembers nothing."""


class Collate(Fifo):
    """llama-swap's ABCABC to AABBCC: whoever wants the model that is in goes first.

    It leaves when nobody wants it; then the model of the oldest request comes. No bound.
    """

    def admits(self, world: World, model: SimModel) -> bool:
        """All that want it."""
        return True

    def _gives_way(self, model: SimModel) -> bool:
        return model.stage is not Stage.IN or not (model.ends or model.waiting)


class Ours:
    """llmuxd's policy, and what it learns on the way; it begins with nothing."""

    def __init__(self, trace: Trace):
        self._trace = trace
        self._board = Board(trace.gpus)
        self._costs = Costs()
        self._dirty: dict[str, SimModel] = {}

    def admits(self, world: World, model: SimModel) -> bool:
        """All that want it."""
        return True

    def decide(self, world: World) -> Decision:
        """As the switcher asks."""
        for model in self._dirty.values():
            self._board.put(self._view(model))
        self._dirty.clear()
        return self._board.decide(world.now)

    def came(self, model: SimModel, seconds: float) -> None:
        """One way in is all that a trace has."""
        self._costs.learn(model.name, Cost.RESUME, seconds)

    def drained(self, model: SimModel, requests: int, seconds: float) -> None:
        """For each that was in flight."""
        if requests:
            self._costs.learn(model.name, Cost.DRAIN, seconds / requests)

    def left(self, model: SimModel, seconds: float) -> None:
        """Once it was drained."""
        self._costs.learn(model.name, Cost.OUT, seconds)

    def asked(self, model: SimModel, now: float) -> None:
        """The first after it fell idle tells the gap."""
        if not model.ends and not model.waiting:
            self._costs.learn(model.name, Cost.GAP, now - model.idle_since)

    def changed(self, model: SimModel) -> None:
        """Its view is made anew for the next decision."""
        self._dirty[model.name] = model

    def _view(self, model: SimModel) -> ModelView:
        requests = len(model.ends) + len(model.waiting)
        return ModelView(
            model.name,
            model.gpus,
            model.stage,
            model.waiting[0].at if model.waiting else None,
            vram=self._trace.vram.get(model.name),
            busy=bool(model.ends),
            in_since=model.in_since,
            idle_since=model.idle_since,
            come_cost=self._costs.at_worst(model.name, Cost.RESUME),
            leave_cost=self._costs.at_worst(model.name, Cost.OUT),
            drain_cost=requests * self._costs.at_worst(model.name, Cost.DRAIN),
            gap=self._costs.known(model.name, Cost.GAP),
            max_wait=self._trace.max_wait,
        )
