# SPDX-License-Identifier: MIT
"""Whose turn it is: the models that wait, in order, and when a GPU's queue gets pressing.

Kept sorted from change to change, so that a decision among a thousand waiting models sorts
nothing.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from .views import ModelView, Stage


@dataclass
class _Lane:
    """Those who need a switch on one GPU, by the time at which it must have begun."""

    waiters: list[tuple[float, str, float]] = field(default_factory=list)
    presses_at: float | None = inf  # None: to be worked out

    def add(self, waiter: tuple[float, str, float]) -> None:
        insort(self.waiters, waiter)
        self.presses_at = None

    def remove(self, waiter: tuple[float, str, float]) -> None:
        del self.waiters[bisect_left(self.waiters, waiter)]
        self.presses_at = None

    def latest_begin(self) -> float:
        """When switching must go on at the latest, so that each of them is in time."""
        if self.presses_at is None:
            ahead, self.presses_at = 0.0, inf
            for deadline, _, cost in self.waiters:
                if deadline == inf:
                    break
                if deadline - ahead < self.presses_at:
                    self.presses_at = deadline - ahead
                ahead += cost
        return self.presses_at


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

    def pressing(self, now: float) -> tuple[set[int], float]:
        """The GPUs whose waiters can't wait for anybody's turn, and when the next gets so."""
        pressing: set[int] = set()
        following = inf
        for number, lane in self._lanes.items():
            begin = lane.latest_begin()
            if begin <= now:
                pressing.add(number)
            else:
                following = min(following, begin)
        return pressing, following

    def in_turn(self, pressing: set[int]) -> Iterator[str]:
        """The waiting models' names: those on pressing GPUs first, some a second time later."""
        urgent = [waiter for number in pressing for waiter in self._lanes[number].waiters]
        for _, name, _ in sorted(urgent):
            yield name
        for _, _, name in self._order:
            yield name

    def _needing(self, model: ModelView) -> Iterator[tuple[_Lane, tuple[float, str, float]]]:
        if model.stage in (Stage.COMING, Stage.IN):
            return
        waiter = (model.deadline, model.name, model.switch_cost)
        for number in model.gpus:
            yield self._lanes[number], waiter


def _turn(model: ModelView) -> tuple[int, float, str]:
    assert model.waiting_since is not None
    return (-model.priority, model.waiting_since, model.name)
