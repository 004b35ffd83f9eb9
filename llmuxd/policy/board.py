# SPDX-License-Identifier: MIT
"""The decision: who comes, who goes."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf

from .lanes import Lanes
from .moment import Moment
from .room import Gpu, NoRoom, Room, no_room, seen
from .tenure import expires_at, keeps_until, loss
from .views import Decision, ModelView, Stage


class Board:
    """The views of all models, kept from change to change; decides about those.

    `put` each view that changed, then `decide`: what a decision costs does not grow with the
    models that sleep, and little with those that wait.
    """

    def __init__(self, gpus: Mapping[int, Gpu] | None = None):
        self._measured: Mapping[int, Gpu] = gpus or {}
        self._gpus: Mapping[int, Gpu] = seen(self._measured, ())
        self._views: dict[str, ModelView] = {}
        self._holders: dict[str, ModelView] = {}
        self._delayed: dict[str, ModelView] = {}
        self._refused: dict[str, NoRoom] = {}
        self._lanes = Lanes()

    def put(self, view: ModelView) -> None:
        """The model looks like this now."""
        before = self._views.get(view.name)
        if before is not None:
            self._take_off(before)
        self._views[view.name] = view
        if view.stage is not Stage.OUT:
            self._holders[view.name] = view
        if view.waiting_since is not None:
            self._queue(view)
        weighed = _place(before) != _place(view) and self._weigh()
        if weighed or _anchor(before) != _anchor(view):
            self._judge_all()

    def remove(self, name: str) -> None:
        """There is no such model any more."""
        view = self._views.pop(name)
        self._take_off(view)
        weighed = _place(view) is not None and self._weigh()
        if weighed or _anchor(view) is not None:
            self._judge_all()

    def measure(self, gpus: Mapping[int, Gpu]) -> None:
        """The GPUs' memory is this now."""
        self._measured = dict(gpus)
        if self._weigh():
            self._judge_all()

    def decide(self, now: float, host: int = 0) -> Decision:
        """What to do at `now`, with so many bytes of the host's memory available."""
        for view in [view for view in self._delayed.values() if view.may_start_at <= now]:
            del self._delayed[view.name]
            self._lanes.add(view)
        pressure = self._lanes.pressure(now, self._leaving_takes())
        moment = Moment(self._measured, host)
        plan = _Plan(self._gpus, self._holders.values(), pressure.late, now, moment)
        plan.ask_again(pressure.late_at)
        for view in self._delayed.values():
            plan.ask_again(view.may_start_at)
        for name in self._lanes.in_turn(pressure.close):
            plan.consider(self._views[name])
        plan.close()
        # In an order that does not tell in which the models were looked at.
        return plan.decision(tuple(self._refused[name] for name in sorted(self._refused)))

    def has_room(self, name: str) -> bool:
        """Whether the model fits beside those that are there, or come, or leave."""
        return self._fits(self._views[name])

    def could_come(self, view: ModelView, host: int) -> bool:
        """Whether a model that looks like this fits so, or could meet those who leave for it."""
        return self._fits(view) or self.could_meet(view, host)

    def could_meet(self, view: ModelView, host: int) -> bool:
        """Whether it could come in while those who leave for it are still there, seen from now."""
        others = [holder for holder in self._holders.values() if holder.name != view.name]
        return Moment(self._measured, host).holds(view, others)

    def _fits(self, view: ModelView) -> bool:
        room = Room(self._gpus)
        for holder in self._holders.values():
            if holder.name != view.name:
                room.add(holder)
        return room.fits(view)

    def _weigh(self) -> bool:
        """Tell what the models hold that are in from what is foreign; whether verdicts change."""
        before, self._gpus = self._gpus, seen(self._measured, self._holders.values())
        if any(_anchor(holder) for holder in self._holders.values()):
            return before != self._gpus
        # What those hold that can leave is in nobody's way.
        return _without_held(before) != _without_held(self._gpus)

    def _leaving_takes(self) -> dict[int, float]:
        """Seconds until the slowest model has left, for each GPU."""
        seconds: dict[int, float] = {}
        for holder in self._holders.values():
            if holder.stage in (Stage.COMING, Stage.IN):
                for number in holder.gpus:
                    leave = holder.drain_cost + holder.leave_cost
                    seconds[number] = max(seconds.get(number, 0.0), leave)
        return seconds

    def _queue(self, view: ModelView) -> None:
        self._judge(view)
        if view.name in self._refused:
            return
        if view.may_start_at > 0:
            self._delayed[view.name] = view
        else:
            self._lanes.add(view)

    def _take_off(self, view: ModelView) -> None:
        self._holders.pop(view.name, None)
        if view.waiting_since is None or self._refused.pop(view.name, None) is not None:
            return
        if self._delayed.pop(view.name, None) is None:
            self._lanes.remove(view)

    def _judge(self, view: ModelView) -> None:
        if view.stage is Stage.OUT:
            pinned = [other for other in self._holders.values() if _anchor(other)]
            verdict = no_room(view, self._gpus, pinned)
            if verdict is not None:
                self._refused[view.name] = verdict

    def _judge_all(self) -> None:
        for view in self._views.values():
            if view.waiting_since is not None:
                self._take_off(view)
                if view.stage is not Stage.OUT:
                    self._holders[view.name] = view
                self._queue(view)


def decide(
    models: Iterable[ModelView], now: float, gpus: Mapping[int, Gpu] | None = None
) -> Decision:
    """A decision about a world that is seen once."""
    board = Board(gpus)
    for model in models:
        board.put(model)
    return board.decide(now)


class _Plan:
    """One decision in the making: the waiting models are considered in turn."""

    def __init__(
        self,
        gpus: Mapping[int, Gpu],
        holders: Iterable[ModelView],
        late: set[int],
        now: float,
        moment: Moment,
    ):
        self._now = now
        self._late = late
        self._moment = moment
        self._holders = sorted(holders, key=loss)
        # Who may be sent away for the next waiter, least loss first.
        self._movable: list[ModelView] = []
        # Who is there now; who will be, once those left who do or must; and of these, who has
        # its place for certain.
        self._present, self._future, self._promised = Room(gpus), Room(gpus), Room(gpus)
        for holder in self._holders:
            self._present.add(holder)
            if holder.stage in (Stage.COMING, Stage.IN):
                self._future.add(holder)
                if holder.pin:
                    self._promised.add(holder)
                else:
                    self._movable.append(holder)
        self._full: set[int] = set()
        self._considered: set[str] = set()
        self._again_at = inf
        self._activate: list[str] = []
        self._beside: list[str] = []
        self._following: list[str] = []
        self._come: list[ModelView] = []
        self._drain: list[str] = []
        self._call_back: list[str] = []

    def ask_again(self, when: float) -> None:
        """Something changes then without an event."""
        if self._now < when < self._again_at:
            self._again_at = when

    def consider(self, waiter: ModelView) -> None:
        """Promise the waiter its place, if no earlier promise is in the way."""
        if (waiter.gpus and waiter.gpus <= self._full) or waiter.name in self._considered:
            return
        self._considered.add(waiter.name)
        free = self._promised.fits(waiter)
        if waiter.stage in (Stage.COMING, Stage.IN):
            self._movable = [other for other in self._movable if other.name != waiter.name]
        else:
            if waiter.stage is Stage.OUT and free:
                self._let_in(waiter)
            elif waiter.stage is Stage.DRAINING and self._future.fits(waiter):
                self._call_back.append(waiter.name)
            self._future.add(waiter)
        # Promised even where it does not fit: nobody behind it may slip in before it.
        self._promised.add(waiter)
        self._full |= {number for number in waiter.gpus if self._promised.is_full(number)}

    def close(self) -> None:
        """Call those back that nobody needs to leave, and let the idle go whose time is over."""
        for holder in reversed(self._holders):
            expires = expires_at(holder)
            if holder.stage is Stage.DRAINING and holder.name not in self._considered:
                if expires > self._now and self._future.fits(holder):
                    self._call_back.append(holder.name)
                    self._future.add(holder)
            elif holder.stage is Stage.IN and holder.name not in self._drain:
                if expires <= self._now:
                    self._drain.append(holder.name)
                self.ask_again(expires)

    def decision(self, refuse: tuple[NoRoom, ...]) -> Decision:
        """What came out of it."""
        return Decision(
            tuple(self._activate),
            tuple(self._drain),
            tuple(self._call_back),
            None if self._again_at == inf else self._again_at,
            refuse,
            tuple(self._beside),
            tuple(self._following),
        )

    def _let_in(self, waiter: ModelView) -> None:
        victims = self._victims(waiter)
        if victims and (waiter.meek or not self._send_away(victims, waiter)):
            return
        if self._present.fits(waiter):
            self._activate.append(waiter.name)
        elif self._moment.holds(waiter, [*self._holders, *self._come]):
            self._activate.append(waiter.name)
            self._beside.append(waiter.name)
        else:
            self._following.append(waiter.name)
            return
        self._present.add(waiter)
        self._come.append(waiter)

    def _victims(self, waiter: ModelView) -> list[ModelView]:
        """Who has to leave, beside those who do, so that the waiter fits."""
        victims = []
        for other in [other for other in self._movable if other.gpus & waiter.gpus]:
            if self._future.fits(waiter):
                break
            self._future.remove(other)
            victims.append(other)
        for other in reversed(victims):
            # A later one may have made more room than was missing.
            self._future.add(other)
            if self._future.fits(waiter):
                victims = [victim for victim in victims if victim is not other]
            else:
                self._future.remove(other)
        self._movable = [other for other in self._movable if other not in victims]
        return victims

    def _send_away(self, victims: list[ModelView], waiter: ModelView) -> bool:
        """Drain all of them or none: one that left early would leave its place empty.

        Whether all of them go now.
        """
        # One that was woken for a request serves it first; while it comes, nobody can stop it.
        ready = [v for v in victims if v.stage is Stage.IN and v.waiting_since is None]
        if not waiter.gpus & self._late:
            kept = max((keeps_until(victim, waiter) for victim in ready), default=0.0)
            if kept > self._now:
                self.ask_again(kept)
                return False
        going = [victim for victim in ready if victim.may_leave_at <= self._now]
        for victim in ready:
            self.ask_again(victim.may_leave_at)
        if len(going) < len(victims):
            return False
        self._drain += [victim.name for victim in going]
        return True


def _without_held(gpus: Mapping[int, Gpu]) -> dict[int, Gpu]:
    return {number: replace(gpu, held={}, hidden=0) for number, gpu in gpus.items()}


def _place(view: ModelView | None) -> tuple[frozenset[int], int | None] | None:
    """What a model has of the GPUs while it is in."""
    return None if view is None or view.stage is Stage.OUT else (view.gpus, view.vram)


def _anchor(view: ModelView | None) -> tuple[frozenset[int], int | None] | None:
    """What a pinned model that is in takes from all others for good."""
    if view is None or not view.pin or view.stage is Stage.LEAVING:
        return None
    return _place(view)
