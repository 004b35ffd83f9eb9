# SPDX-License-Identifier: MIT
"""What the policy sees of the world, and what it says."""

from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf

from .moment import Need
from .room import NoRoom


class Stage(Enum):
    """Where a model is on its way in and out of the GPU."""

    OUT = auto()
    COMING = auto()
    IN = auto()
    DRAINING = auto()  # gives up the GPU once its requests ended; can still be called back
    LEAVING = auto()


@dataclass(frozen=True, slots=True)
class ModelView:
    """What the policy sees of a model. Times are in seconds of one monotonic clock.

    `waiting_since`: arrival of the oldest request, or operator's wish, that needs the model
    active and has not got it; None where nobody waits. `may_start_at`: not to be started before
    (it failed lately). `may_leave_at`: not to be asked to leave before.

    `vram`: bytes on each of its GPUs; None: all of them. `need`: what it was seen to take, where it
    comes back or is there; None: not known. `pin`: once in, it never leaves.
    `meek`: whoever waits for it waits until there is room, and has nobody leave.
    `priority`: the higher goes first. `busy`: has requests in flight. `in_since`, `idle_since`:
    when it came in, and when its last request ended.

    Learnt, in seconds: `come_cost` to bring it back, `leave_cost` to get it out once it is
    drained; `drain_cost` to end what is in flight and what waits for it; `gap` from the end of
    its requests to the next one (None: not known). Waits are planned with these: rather too long
    than too short.

    Configured, in seconds: `max_wait` of a request until its model begins to come,
    `min_active` in the GPU, `ttl` of an idle model (None: stays until another needs its place).
    """

    name: str
    gpus: frozenset[int]
    stage: Stage
    waiting_since: float | None = None
    may_start_at: float = 0.0
    may_leave_at: float = 0.0
    vram: int | None = None
    need: Need | None = None
    pin: bool = False
    meek: bool = False
    priority: int = 0
    busy: bool = False
    in_since: float = 0.0
    idle_since: float = 0.0
    come_cost: float = 0.0
    leave_cost: float = 0.0
    drain_cost: float = 0.0
    gap: float | None = None
    max_wait: float = inf
    min_active: float = 0.0
    ttl: float | None = None

    @property
    def complete(self) -> bool:
        """Whether it has all of its memory already."""
        return self.stage not in (Stage.OUT, Stage.COMING)

    @property
    def switch_cost(self) -> float:
        """Seconds without service that its leaving and coming back take."""
        return self.come_cost + self.leave_cost

    @property
    def turn_cost(self) -> float:
        """Seconds that others wait while it comes, serves who waits for it now, and leaves."""
        return self.switch_cost + self.drain_cost

    @property
    def deadline(self) -> float:
        """When it must begin to come; infinite where nobody waits."""
        return inf if self.waiting_since is None else self.waiting_since + self.max_wait


@dataclass(frozen=True)
class Decision:
    """What to do now, and when to ask again even if nothing happens (None: no need).

    `beside`: those of `activate` that come while others hold their GPUs still, by what was measured
    to be free; who is to leave for one of them leaves once it answers. `refuse`: who waits in vain,
    and why. `following`: who comes as soon as those have left who drain or leave.
    """

    activate: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    call_back: tuple[str, ...] = ()
    again_at: float | None = None
    refuse: tuple[NoRoom, ...] = ()
    beside: tuple[str, ...] = ()
    following: tuple[str, ...] = field(default=(), compare=False)
