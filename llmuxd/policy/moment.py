# SPDX-License-Identifier: MIT
"""Whether one may come in beside another for the moment until that one has left.

Two that may not stay together can still meet: the measured memory decides, not what they say that
they need. Only who comes back is let in so, with what it was seen to take when it was last in; a
cold start may take anything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .room import Gpu, Tenant

# Of each GPU: what those who are there may take beyond what they were ever seen to hold.
MARGIN = 0.05
# Of the host's memory that is available: an image that fills more drives out what is in use.
HOST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Need:
    """What a model was seen to take, in bytes: at most so much `vram` on each of its GPUs.

    `host` is what it takes of the host's memory when it comes in from where it is.
    """

    vram: int
    host: int = 0


class Guest(Tenant, Protocol):
    """What the moment needs to know of a model besides."""

    @property
    def need(self) -> Need | None:
        """None where it is not known."""

    @property
    def complete(self) -> bool:
        """Whether it has all of its memory already."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What is free just now: the GPUs' memory as it was read, and bytes of the host's."""

    measured: Mapping[int, Gpu]
    host: int

    def holds(self, newcomer: Guest, others: Iterable[Guest]) -> bool:
        """Whether it can come beside the others, whatever they take up to what they ever took."""
        need = newcomer.need
        if need is None or need.host > HOST_SHARE * self.host:
            return False
        there = list(others)
        return not need.vram or all(
            need.vram <= self._free(number, newcomer, there) for number in newcomer.gpus
        )

    def _free(self, number: int, newcomer: Guest, others: list[Guest]) -> float:
        gpu = self.measured.get(number)
        if gpu is None:
            return 0.0
        free = gpu.total * (1 - MARGIN) - gpu.foreign - sum(gpu.held.values())
        # What it left behind there is part of what it takes.
        free += gpu.held.get(newcomer.name, 0)
        for other in [other for other in others if number in other.gpus]:
            if other.need is not None:
                free -= max(other.need.vram - gpu.held.get(other.name, 0), 0)
            elif not other.complete:
                return 0.0
        return free
