# SPDX-License-Identifier: MIT
"""Who comes after whom, from one decision to the next.

A place that one leaves for another is promised to that one; where an operator wanted that one, and
it does not come, the first comes back. And one beside whom another comes in leaves once that one
serves, also where it would not at first, or llmuxd was killed meanwhile.
"""

import asyncio
import contextlib
import logging
from math import inf
from typing import Any

from ..errors import LlmuxError
from ..events import about
from ..model.activation import is_moved
from ..policy import Decision, Stage
from .admission import Admission
from .fleet import Fleet
from .leaving import Leaving
from .models import Model, Wish
from .succession import SETTLING, Succession
from .tasks import Tasks
from .transitions import Transitions

log = logging.getLogger(__name__)

_GOING = (Stage.DRAINING, Stage.LEAVING)
_COME = (Stage.COMING, Stage.IN)


class Following:
    """Told of each decision, and asked to go on after it."""

    def __init__(
        self,
        fleet: Fleet,
        tasks: Tasks,
        admission: Admission,
        transitions: Transitions,
        leaving: Leaving,
        succession: Succession,
    ):
        self._fleet = fleet
        self._tasks = tasks
        self._admission = admission
        self._transitions = transitions
        self._leaving = leaving
        self._succession = succession
        self._followers: set[str] = set()
        # What cancelled jobs left behind, by model: it goes on while that is promised, or comes.
        self._orphans: dict[str, list[asyncio.Task[Any]]] = {}
        # Those who come back as soon as they have left.
        self._returning: set[str] = set()

    def adopt(self, model: Model, task: asyncio.Task[LlmuxError | None]) -> bool:
        """Whether the work of a job that is cancelled goes on: for it the model comes, or is to."""
        comes = model.promised or self._fleet.stage(model) in _COME
        if not comes or model.queued or model.in_flight:
            return False
        if self._admission.orphan(model, task):
            self._orphans.setdefault(model.name, []).append(task)
        # Else it has been let in just now, and goes on by itself.
        return True

    def disown(self, model: Model) -> None:
        """An operator wants it out: nothing of what was cancelled brings it in any more."""
        self._returning.discard(model.name)
        for names in self._leaving.made_way.values():
            names.discard(model.name)
        self._end(model.name)

    def give_back(self, model: Model) -> None:
        """The wish for it was withdrawn by a job: those come back whom that made leave in vain."""
        comes = model.waiters or self._fleet.stage(model) is not Stage.OUT
        if comes or self._admission.stopping:
            return
        for name in sorted(self._leaving.made_way.pop(model.name, ())):
            other = self._fleet.models.get(name)
            if other is not None:
                self._returning.add(name)
                self._tasks.spawn(self._come_back(other))

    def take(self, decision: Decision) -> None:
        """Before those are activated who are to come in."""
        for name in self._followers.difference(decision.following):
            self._set_follows(name, False)
        self._followers = set(decision.following)
        for name in self._followers:
            self._set_follows(name, True)
        self._forget_who_made_way()
        for name in decision.beside:
            newcomer = self._fleet.models[name]
            place = set(self._fleet.place(newcomer))
            for model in self._fleet.models.values():
                going = self._fleet.stage(model) in _GOING and model is not newcomer
                if going and place & set(model.held):
                    self._succession.note(model.name, name)

    def go_on(self, time: float) -> float:
        """What is due by now; returns when more of it is."""
        for name in [*self._orphans]:
            self._keep(name)
        return min((self._succeed(name, time) for name in [*self._succession.pending]), default=inf)

    def _set_follows(self, name: str, follows: bool) -> None:
        model = self._fleet.models.get(name)
        if model is not None:
            model.follows = follows
            model.promised = follows and (model.promised or self._is_left_for(model))

    def _is_left_for(self, model: Model) -> bool:
        """Whether somebody leaves so that it can come: its turn came, or came back, meanwhile."""
        place = set(self._fleet.place(model))
        return any(
            other.moving is Stage.LEAVING and not other.commanded and place & set(other.held)
            for other in self._fleet.models.values()
            if other.name not in self._succession.pending
        )

    def _forget_who_made_way(self) -> None:
        """Where nobody waits any more: what they left for is there, or nobody wants it."""
        for name in [*self._leaving.made_way]:
            model = self._fleet.models.get(name)
            if model is None or not model.waiters:
                del self._leaving.made_way[name]

    async def _come_back(self, model: Model) -> None:
        """Where there is room: it is in nobody's way, and nobody leaves for it."""
        while model.transition is not None:
            await asyncio.wait([model.transition])
        wanted = model.name in self._returning and not model.removed
        self._returning.discard(model.name)
        if not wanted or self._fleet.stage(model) is not Stage.OUT:
            return
        log.info("%s comes back: it left for one that does not come", model.name,
                 extra=about(model=model.name))  # fmt: skip
        task = asyncio.current_task()
        assert task is not None
        self._orphans.setdefault(model.name, []).append(task)
        with contextlib.suppress(LlmuxError):
            await self._admission.enter(model, Wish.NOBODY)

    def _keep(self, name: str) -> None:
        """Let go of what is left of cancelled jobs: the model has come, or lost its place."""
        model = self._fleet.models.get(name)
        stage = Stage.OUT if model is None else self._fleet.stage(model)
        if stage is Stage.COMING or (model is not None and model.promised):
            return
        # Whoever asked for it meanwhile has it.
        used = model is not None and model.in_flight > 0
        if model is None or stage is not Stage.IN or used:
            self._end(name)
        else:
            del self._orphans[name]

    def _end(self, name: str) -> None:
        for task in self._orphans.pop(name, ()):
            task.cancel()

    def _succeed(self, name: str, time: float) -> float:
        model = self._fleet.models.get(name)
        if model is not None and model.transition is not None:
            return inf
        stage = Stage.OUT if model is None else self._fleet.stage(model)
        others = self._succession.pending[name]
        newcomers = [self._fleet.models[other] for other in others if other in self._fleet.models]
        due = max((self._counts_until(newcomer, time) for newcomer in newcomers), default=-inf)
        if model is None or stage is Stage.OUT or due <= time:
            self._succession.forget(name)
            return inf
        serves = any(self._fleet.stage(newcomer) is Stage.IN for newcomer in newcomers)
        if stage is not Stage.IN or not serves or model.pin:
            return due
        if model.may_leave_at > time:
            return model.may_leave_at
        log.info("%s leaves now: %s serves", name, " or ".join(others),
                 extra=about(model=name, phase="draining"))  # fmt: skip
        self._transitions.begin(model, Stage.DRAINING, self._leaving.make_room(model))
        return inf

    def _counts_until(self, newcomer: Model, time: float) -> float:
        """Until when it may be in the way without our doing; infinite where it is not out."""
        if self._fleet.stage(newcomer) is not Stage.OUT:
            return inf
        if not newcomer.parked:
            return -inf
        # A wake that was asked for by who was killed goes on.
        return time + SETTLING if is_moved(newcomer.name) else self._succession.settled_at
