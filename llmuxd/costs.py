# SPDX-License-Identifier: MIT
"""What moving a model takes, learnt from each time that it was moved."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import islice
from math import isfinite


class Cost(StrEnum):
    """What is measured, in seconds. COLD, RESTORE and RESUME are the ways in.

    DRAIN is for each request in flight: until the last ended, divided by their number. From then
    to the free GPU it is PARK where the model waits in memory, else OUT. GAP is from the end of
    its requests to the next one.
    """

    COLD = "cold"
    RESTORE = "restore"
    RESUME = "resume"
    DRAIN = "drain"
    OUT = "out"
    PARK = "park"
    GAP = "gap"


# The median of so many: one outlier, or three, say nothing; a lasting change is believed after
# four times.
SAMPLES = 7


def median(samples: Sequence[float]) -> float:
    """As in statistics, which loads decimal and fractions with it, half a megabyte of memory."""
    ordered, middle = sorted(samples), len(samples) // 2
    return ordered[middle] if len(ordered) % 2 else sum(ordered[middle - 1 : middle + 1]) / 2


class Costs:
    """The last measurements of each model and cost. Unknown is told as unknown, or guessed."""

    def __init__(self) -> None:
        self._samples: dict[str, dict[Cost, list[float]]] = {}

    def learn(self, model: str, cost: Cost, seconds: float) -> None:
        """It took `seconds` this time."""
        if isfinite(seconds) and seconds >= 0:
            samples = self._samples.setdefault(model, {}).setdefault(cost, [])
            samples.append(seconds)
            del samples[:-SAMPLES]

    def known(self, model: str, cost: Cost) -> float | None:
        """Seconds, as a rule; None where it was never measured."""
        samples = self._samples.get(model, {}).get(cost)
        return median(samples) if samples else None

    def expect(self, model: str, cost: Cost, otherwise: float = 0.0) -> float:
        """`known`, else what it takes with other models, else `otherwise`."""
        known = self.known(model, cost)
        if known is not None:
            return known
        others = (costs[cost] for costs in self._samples.values() if cost in costs)
        typical = [median(samples) for samples in islice(others, SAMPLES)]
        return median(typical) if typical else otherwise

    def at_worst(self, model: str, cost: Cost) -> float:
        """What to reckon with: the second longest of the last; zero where it was never measured.

        The longest alone may be an outlier; the median would be too short half of the time.
        """
        samples = sorted(self._samples.get(model, {}).get(cost, ()))
        return samples[-2] if len(samples) > 1 else sum(samples)

    def reckon(self, model: str, cost: Cost) -> float:
        """`at_worst`, or what it takes with other models as long as it was not measured here."""
        return self.at_worst(model, cost) or self.expect(model, cost)

    def forget(self, model: str) -> None:
        """The model is gone, or became another."""
        self._samples.pop(model, None)

    def to_json(self) -> dict[str, object]:
        """All of it, for a file."""
        return {
            model: {cost.value: list(samples) for cost, samples in costs.items()}
            for model, costs in self._samples.items()
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, object]) -> "Costs":
        """What `to_json` gave; what cannot be understood is left out, it will be learnt again."""
        found = cls()
        for model, costs in raw.items():
            for cost, samples in costs.items() if isinstance(costs, dict) else ():
                if cost in Cost.__members__.values() and isinstance(samples, list):
                    for seconds in samples:
                        if isinstance(seconds, int | float):
                            found.learn(str(model), Cost(cost), float(seconds))
        return found
