# SPDX-License-Identifier: MIT
"""What policy is told of the models, and what is made of its answer."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from math import inf

from .. import memory
from ..errors import NoRoom
from ..model.activation import parked_vram
from ..policy import Board, Decision, Gpu, Stage
from ..state import State
from .admission import Admission
from .coming import Coming
from .costbook import CostBook
from .fleet import Fleet
from .following import Following
from .leaving import Leaving
from .models import PRESSING, Model, Wish, now
from .occupants import holders
from .poising import Poising
from .transitions import Transitions
from .views import view

log = logging.getLogger(__name__)

# Measures the GPUs' memory anew; nothing where it cannot be.
Gauge = Callable[[], Awaitable[Mapping[int, Gpu]]]


class Decider:
    """Takes a step whenever something changed; what it costs grows with what did."""

    def __init__(
        self,
        fleet: Fleet,
        admission: Admission,
        transitions: Transitions,
        coming: Coming,
        leaving: Leaving,
        following: Following,
        book: CostBook,
        gauge: Gauge | None,
    ):
        self._fleet = fleet
        self._admission = admission
        self._transitions = transitions
        self._coming = coming
        self._leaving = leaving
        leaving.gone = self._gone
        self._following = following
        self._poising = Poising(fleet)
        self._book = book
        self._gauge = gauge
        self._board = Board()
        # Each model's stage, whether its unit is down, and whether it holds GPUs.
        self._seen: dict[str, tuple[Stage, bool, bool]] = {}
        # One left, or died, after the last measurement was begun.
        self._outdated = True
        self._measured_at = -inf
        # What each model was last seen to hold of a GPU, in bytes.
        self._held: dict[str, int] = {}
        self._parked: set[str] = set()
        self._gpus: Mapping[int, Gpu] = {}
        self._connect_at: dict[str, float] = {}

    def measure(self, gpus: Mapping[int, Gpu]) -> None:
        """The GPUs' memory is this now."""
        self._take(gpus)
        self._fleet.woken.set()

    async def has_room(self, model: Model) -> bool:
        """Whether the model could come in now, and nobody had to leave."""
        await self._measure()
        self._look_again()
        return not model.removed and self._board.has_room(model.name)

    async def why_no_dump(self, model: Model) -> str:
        """Who has the GPU on which a parked model has to be for its dump; empty where it may."""
        if not model.parked or self._leaving.needs_no_gpu(model):
            return ""
        room = await self.has_room(model)
        needed = await asyncio.to_thread(parked_vram, model.name)
        full = [
            number
            for number, size in needed.items()
            if number in self._gpus and size > self._gpus[number].free
        ]
        if room and not full:
            return ""
        told = [holders(self._fleet, self._gpus, model, number) for number in full or model.held]
        return "; ".join(filter(None, told)) or "its GPU has no room for it"

    def could_meet(self, model: Model) -> bool:
        """Whether it could come in while those who leave for it are still there, seen from now."""
        shown = view(self._fleet, self._book, model)
        return self._board.could_meet(shown, memory.available())

    def _gone(self, model: Model) -> None:
        """It has left, and may be wanted back by now: its unit begins to load meanwhile.

        Where it does not come after all, the next decision withdraws it.
        """
        # What it had it has let go of by now.
        place = frozenset(model.config.gpus)
        others = [
            other
            for other in self._fleet.models.values()
            if other is not model and place.intersection(self._fleet.place(other))
        ]
        wanted = any(waiter.wish in PRESSING for waiter in model.waiters)
        if not wanted or any(other.waiters for other in others):
            return
        shown = replace(view(self._fleet, self._book, model), gpus=place)
        if self._board.could_come(shown, memory.available()):
            self._poising.back(model)

    async def step(self) -> float | None:
        """Decide and begin what is to be done; the seconds until the next step is due anyhow."""
        time, decision = await self._decide()
        self._obey(decision)
        await self._spill()
        due = min(
            self._following.go_on(time),
            self._cut_forced(time),
            min(self._connect_at.values(), default=inf),
            inf if decision.again_at is None else decision.again_at,
        )
        return None if due == inf else max(due - time, 0.0)

    async def _decide(self) -> tuple[float, Decision]:
        begin = now()
        while True:
            time = await self._catch_up()
            decision = self._board.decide(time, memory.available() if self._anybody_waits() else 0)
            asked = [
                self._fleet.models[verdict.model].waiters[0].arrived for verdict in decision.refuse
            ]
            if any(self._book.needs.known(name) for name in decision.beside):
                asked.append(begin)
            if self._gauge is None or max(asked, default=-inf) <= self._measured_at:
                return time, decision
            # Nobody is refused by what was measured before it asked, and nobody let in beside
            # another by what was free a while ago.
            self._poising.ready(decision.beside)
            await self._measure()

    async def _catch_up(self) -> float:
        """Have the board know all that is; the time at which it does."""
        while True:
            time = now()
            for name in [name for name, when in self._connect_at.items() if when <= time]:
                del self._connect_at[name]
                self._fleet.dirty.add(name)
            self._look_again()
            if not (self._outdated and self._is_room_asked_for()):
                return time
            # By the time that it is done others may have left.
            await self._measure()

    def _anybody_waits(self) -> bool:
        return any(model.waiters for model in self._fleet.models.values())

    def _is_room_asked_for(self) -> bool:
        return any(m.waiters and m.config.vram is not None for m in self._fleet.models.values())

    async def _measure(self) -> None:
        self._outdated = False
        begin = now()
        if self._gauge is not None:
            self._take(await self._gauge())
        # Not before: somebody else may have begun one since, and have no answer yet.
        self._measured_at = max(self._measured_at, begin)

    def _take(self, gpus: Mapping[int, Gpu]) -> None:
        self._board.measure(gpus)
        self._gpus = gpus
        before, self._held = self._held, {}
        for gpu in gpus.values():
            for name, held in gpu.held.items():
                self._held[name] = max(held, self._held.get(name, 0))
        changed = {name for name, held in self._held.items() if held != before.get(name)}
        self._fleet.dirty |= changed & self._fleet.models.keys()

    def _obey(self, decision: Decision) -> None:
        models = self._fleet.models
        for verdict in decision.refuse:
            model, error = models[verdict.model], NoRoom(verdict.reason)
            log.info("%s", verdict.reason)
            model.last_error = str(error)
            # Who came during the measurement waits for the next; others do not wait for that.
            until = inf if self._gauge is None else self._measured_at
            self._admission.refuse_all(model, error, until)
        for name in decision.call_back:
            self._transitions.call_back(models[name])
        if decision.drain:
            self._leaving.read_ahead()
        for name in decision.drain:
            model = models[name]
            after = [
                models[other]
                for other in decision.beside
                if set(self._fleet.place(models[other])) & set(model.held)
            ]
            work = self._leaving.make_room(model, after)
            self._transitions.begin(model, Stage.DRAINING, work)
        self._following.take(decision)
        for name in decision.activate:
            model = models[name]
            come = self._coming.come_beside if name in decision.beside else self._coming.activate
            self._transitions.begin(model, Stage.COMING, come(model))
        self._poising.settle(decision.following)

    def _look_again(self) -> None:
        """Serve who can be served, and show policy what is not as it was."""
        dirty = self._fleet.dirty
        looked: set[str] = set()
        while dirty:
            name = dirty.pop()
            looked.add(name)
            model = self._fleet.models.get(name)
            if model is not None:
                self._admission.let_in(model)
                self._connect(model)
            dirty -= looked
        for name in looked:
            self._show(name)

    def _show(self, name: str) -> None:
        model = self._fleet.models.get(name)
        before, seen = self._seen.pop(name, None), None
        if model is not None:
            if self._fleet.stage(model) in (Stage.IN, Stage.DRAINING):
                # On its way in it has not all of it yet, on its way out not any more.
                self._book.learn_need(name, self._held.get(name, 0))
            shown = view(self._fleet, self._book, model)
            self._board.put(shown)
            down = self._fleet.units.status(name).down
            seen = self._seen[name] = shown.stage, down, bool(shown.gpus)
        elif before is not None:
            self._board.remove(name)
        left = seen is None or seen[0] is Stage.OUT
        released = before is not None and seen is not None and before[2] and not seen[2]
        if before != seen and (left or released):
            self._outdated = True
        if model is not None and self._fleet.state(model) is State.PARKED:
            self._parked.add(name)
        else:
            self._parked.discard(name)

    def _connect(self, model: Model) -> None:
        """Look for the server of a unit that is up without our doing."""
        unit = self._fleet.units.status(model.name)
        if not unit.up or unit.frozen or model.parked:
            return
        if model.backend or model.transition:
            return
        if model.connect_at > now():
            self._connect_at[model.name] = model.connect_at
        else:
            self._transitions.begin(model, Stage.COMING, self._coming.connect(model))

    async def _spill(self) -> None:
        """Where memory is short, the parked model that was used least lately goes to disk.

        It is in nobody's way there: what takes its GPU has it, or is taking it, already. So one
        that would have to be back on it for that, and has not the room, is stopped instead, where
        there is no other; but not for `park_memory` alone, which loses nobody anything.
        """
        if not (self._spillable() and self._is_memory_short()):
            return
        short = memory.short()
        if short or self._outdated:
            # What one held that has left just now is not in the way.
            await self._measure()
        self._look_again()
        parked = self._spillable()
        can_be_kept = {
            model.name: self._leaving.needs_no_gpu(model) or self._board.has_room(model.name)
            for model in parked
        }
        # Not one that is about to come back, if there is another.
        model = min(
            (model for model in parked if short or can_be_kept[model.name]),
            key=lambda model: (
                not can_be_kept[model.name], bool(model.waiters), model.idle_since,
            ),
            default=None,
        )  # fmt: skip
        if model is not None:
            work = self._leaving.spill(model, can_be_kept[model.name])
            self._transitions.begin(model, Stage.LEAVING, work)

    def _spillable(self) -> list[Model]:
        """One at a time: what the one before gave back is not known until it is gone."""
        models = self._fleet.models
        if any(model.moving is Stage.LEAVING for model in models.values()):
            return []
        parked = [models[name] for name in self._parked]
        return [m for m in parked if m.transition is None and m.may_leave_at <= now()]

    def _is_memory_short(self) -> bool:
        limit = self._fleet.config.park_memory
        held = sum(self._fleet.models[name].parked_memory for name in self._parked)
        return memory.short() or (limit is not None and held > limit)

    def _cut_forced(self, time: float) -> float:
        """Cut what keeps an operator waiting for too long; when there is more of it to do."""
        due = inf
        draining = [m for m in self._fleet.models.values() if m.moving is Stage.DRAINING]
        for model in draining:
            limit = model.config.drain_timeout
            if limit is None or not model.in_flight or not self._is_forced(model):
                continue
            when = model.draining_since + limit
            if when > time:
                due = min(due, when)
            elif model.backend is not None:
                log.warning(
                    "%s: cutting %d requests after %g s, an operator wants it to leave",
                    model.name, model.in_flight, limit,
                )  # fmt: skip
                self._leaving.cut(model)
        return due

    def _is_forced(self, model: Model) -> bool:
        """Whether an operator said so, or wants another model to serve that cannot come before."""
        if model.commanded:
            return True
        held = set(model.held)
        return any(
            waiter.wish is Wish.OPERATOR
            for other in self._fleet.models.values()
            if other.waiters and self._fleet.stage(other) is Stage.OUT
            if held & set(self._fleet.place(other))
            for waiter in other.waiters
        )
