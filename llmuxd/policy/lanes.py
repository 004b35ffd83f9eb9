# SPDX-License-Identifier: MIT
"""Whose turn it is: the models that wait, in order, and when a GPU's queue gets pressing.

Kept sorted from change to change, so that a decision among a thousand waiting models sorts
nothing.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

from .views import ModelView, Stage


@dataclass
class Pressure:
    """GPUs whose waiters cannot wait for anything else: `late` for the turn of who is in, `close`
    for somebody else to go first. `late_at`: when the next gets late.
    """

    late: set[int] = field(default_factory=set)
    close: set[int] = field(default_factory=set)
    late_at: float = inf


@dataclass
class _Lane:
    """Those who need a switch on one GPU, by the time at which it must begin to come."""

    waiters: list[tuple[float, str, float]] = field(default_factory=list)
    _known: tuple[float, float] | None = (inf, 0.0)

    def add(self, waiter: tuple[float, str, float]) -> None:
        insort(self.waiters, waiter)
        self._known = None

    def remove(self, waiter: tuple[float, str, float]) -> None:
        del self.waiters[bisect_left(self.waiters, waiter)]
        self._known = None

    def latest(self) -> tuple[float, float]:
        """When the first must begin to come at the latest, so that each of them is in time.

        And the seconds that it takes to let another of them go before.
        """
        if self._known is None:
            ahead = dearest = 0.0
            begin = inf
            for deadline, _, cost in self.waiters:
                begin = min(begin, deadline - ahead)
                ahead += cost
                dearest = max(dearest, cost)
            self._known = begin, dearest
        return self._known


class Lanes:
    """All who wait and may start."""

    def __init__(self) -> None:
        self._order: list[tuple[int, float, str]] = []
        self._lanes: defaultdict[int, _Lane] = defaultdict(_Lane)

    def add(self, model: ModelView) -> None:
        """`model` waits."""
        insort(self._order, _turn(model))
        for lane, waiter in self._needing(model):
            lane.add(waiter)

    def remove(self, model: ModelView) -> None:
        """The same view as was added waits no more."""
        del self._order[bisect_left(self._order, _turn(model))]
        for lane, waiter in self._needing(model):
            lane.remove(waiter)

    def pressure(self, now: float, leave: Mapping[int, float]) -> Pressure:
        """Which GPUs are pressed, if it takes `leave` seconds to get one empty that is not."""
        found = Pressure()
        for number, lane in self._lanes.items():
            begin, dearest = lane.latest()
            begin -= leave.get(number, 0.0)
            if begin - dearest <= now:
                found.close.add(number)
            if begin <= now:
                found.late.add(number)
            else:
                found.late_at = min(found.late_at, begin)
        return found

    def in_turn(self, close: set[int]) -> Iterator[str]:
        """The waiting models' names: those on `close` GPUs first, some a second time later."""
        urgent = [waiter for number in close for waiter in self._lanes[number].waiters]
        for _, name, _ in sorted(urgent):
            yield name
        for _, _, name in self._order:
            yield name

    def _needing(self, model: ModelView) -> Iterator[tuple[_Lane, tuple[float, str, float]]]:
        if model.stage in (Stage.COMING, Stage.IN):
            return
        waiter = (model.deadline, model.name, model.turn_cost)
        for number in model.gpus:
            yield self._lanes[number], waiter


def _turn(model: ModelView) -> tuple[int, float, str]:
    assert model.waiting_since is not None
    return (-model.priority, model.waiting_since, model.name)
