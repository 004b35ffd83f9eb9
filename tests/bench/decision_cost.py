# SPDX-License-Identifier: MIT
"""What a decision costs among 1,000 models with 10,000 waiting requests.

`python3 -m tests.bench.decision_cost`; exit status 0 only if the goal is met. A decision is
counted from an event (a request arrives, is let in, or ends; a model moves) to its Decision: the
views of the models that it touched are made and put on the board. For comparison, the same with
all views made anew each time.
"""

import sys
import time
from collections import deque
from random import Random
from statistics import median, quantiles

from llmuxd.policy import Board, Decision, Gpu, ModelView, Stage, decide

from .goals import Goals

MODELS = 1000
REQUESTS = 10_000
GPUS = 8
EVENTS = 3000
GIB = 1 << 30
LIMIT = 0.001


class House:
    """A host in full swing: each model's queue, and its stage."""

    def __init__(self, *, vram: bool, max_wait: float):
        self._random = Random(8)
        self._vram = vram
        self._max_wait = max_wait
        self.now = 1000.0
        self.names = [f"model-{number:04}" for number in range(MODELS)]
        self.queues: dict[str, deque[float]] = {name: deque() for name in self.names}
        self.stages = dict.fromkeys(self.names, Stage.OUT)
        self.in_since = dict.fromkeys(self.names, 0.0)
        self.gpus = {name: self._some_gpus() for name in self.names}
        self.memory = {number: Gpu(80 * GIB, GIB) for number in range(GPUS)}
        for number in range(REQUESTS):
            self.queues[self.names[number % MODELS]].append(900 + number * 0.01)

    def _some_gpus(self) -> frozenset[int]:
        count = self._random.choice((1, 1, 1, 2))
        return frozenset(self._random.sample(range(GPUS), count))

    def view(self, name: str) -> ModelView:
        """As the switcher makes it."""
        queue = self.queues[name]
        return ModelView(
            name=name,
            gpus=self.gpus[name],
            stage=self.stages[name],
            waiting_since=queue[0] if queue else None,
            vram=20 * GIB if self._vram else None,
            busy=self.stages[name] is Stage.IN,
            in_since=self.in_since[name],
            idle_since=self.in_since[name],
            come_cost=1.7,
            leave_cost=0.6,
            gap=2.0,
            max_wait=self._max_wait,
        )

    def carry_out(self, decision: Decision) -> set[str]:
        """What was decided happens, one step each; the models that it touched."""
        moved: set[str] = set()
        for name, stage in self.stages.items():
            if stage is Stage.COMING:
                self.in_since[name] = self.now
                # Its requests are let in; as many new ones arrive elsewhere.
                for _ in range(len(self.queues[name])):
                    other = self._random.choice(self.names)
                    if self.stages[other] is Stage.OUT:
                        self.queues[other].append(self.now)
                        moved.add(other)
                self.queues[name].clear()
            after = {
                Stage.COMING: Stage.IN,
                Stage.DRAINING: Stage.LEAVING,
                Stage.LEAVING: Stage.OUT,
            }.get(stage)
            if after is not None:
                self.stages[name] = after
                moved.add(name)
        for names, stage in (
            (decision.activate, Stage.COMING),
            (decision.drain, Stage.DRAINING),
            (decision.call_back, Stage.IN),
        ):
            for name in names:
                self.stages[name] = stage
                moved.add(name)
        return moved

    def arrival(self) -> set[str]:
        """One request, for any model."""
        name = self._random.choice(self.names)
        if self.stages[name] is not Stage.IN:
            self.queues[name].append(self.now)
        return {name}


def main() -> int:
    """A table, then the goal."""
    goals = Goals()
    print(f"{MODELS} models, {REQUESTS} requests that wait, {GPUS} GPUs; milliseconds a decision")
    print(f"  {'':34} {'median':>8} {'p99':>8} {'anew':>8} {'ratio':>7}")
    worst = 0.0
    for label, vram, max_wait in (
        ("whole GPUs, in turn", False, 1e6),
        ("whole GPUs, all pressing", False, 1.0),
        ("by memory, in turn", True, 1e6),
        ("by memory, all pressing", True, 1.0),
    ):
        house = House(vram=vram, max_wait=max_wait)
        taken, anew = measure(house)
        worst = max(worst, median(taken))
        print(
            f"  {label:34} {median(taken) * 1e3:8.3f} {quantiles(taken, n=100)[98] * 1e3:8.3f}"
            f" {median(anew) * 1e3:8.3f} {median(anew) / median(taken):6.1f}x"
        )
    print()
    goals.line(
        "decision",
        f"{worst * 1e3:.3f} ms in the median, views included",
        f"below {LIMIT * 1e3:.0f} ms",
        worst < LIMIT,
    )
    return 0 if goals.all_met else 1


def measure(house: House) -> tuple[list[float], list[float]]:
    """Seconds of each decision on the board, and of some from nothing, which must say the same."""
    board = Board(house.memory)
    for name in house.names:
        board.put(house.view(name))
    taken, anew = [], []
    touched: set[str] = set()
    for number in range(EVENTS):
        begin = time.perf_counter()
        for name in touched:
            board.put(house.view(name))
        decision = board.decide(house.now)
        taken.append(time.perf_counter() - begin)
        if number % 100 == 0:
            begin = time.perf_counter()
            same = decide([house.view(name) for name in house.names], house.now, house.memory)
            anew.append(time.perf_counter() - begin)
            assert same == decision
        house.now += 0.01
        touched = house.carry_out(decision) if number % 4 == 0 else house.arrival()
    return taken, anew


if __name__ == "__main__":
    sys.exit(main())
