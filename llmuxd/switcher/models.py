# SPDX-License-Identifier: MIT
"""What the switcher remembers of a model."""

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from ..backend import Backend
from ..config import ModelConfig
from ..costs import Cost
from ..errors import LlmuxError
from ..model.activation import Activation
from ..model.checkpoint import Checkpoint
from ..model.moves import Move
from ..model.tuning import Figures, Tuning
from ..policy import Stage


def now() -> float:
    """The running loop's clock, in seconds: monotonic, and a test's own where it has one."""
    return asyncio.get_running_loop().time()


class Wish(Enum):
    """Who wants a model to serve."""

    REQUEST = auto()
    OPERATOR = auto()  # no request follows, but somebody waits for it
    PRELOAD = auto()  # once nobody else wants the place
    NOBODY = auto()  # a job did, and was cancelled too late; or one took its place in vain


# Those for whose sake others leave while they are at work.
PRESSING = (Wish.REQUEST, Wish.OPERATOR)


@dataclass(eq=False)
class Waiter:
    """One that waits for a model. `arrived` is by `now`; `task` is the one that waits."""

    arrived: float
    wish: Wish
    priority: int
    admitted: asyncio.Future[Backend]
    task: asyncio.Task[Any] | None


@dataclass(eq=False)
class Model:
    """What the switcher knows of a model beside its unit. Times are by `now`.

    `last_used` alone is Unix time, for people: the clock may be set.
    """

    config: ModelConfig
    waiters: deque[Waiter] = field(default_factory=deque)
    priorities: Counter[int] = field(default_factory=Counter)  # of the waiters who press
    queued: int = 0  # requests among the waiters
    follows: bool = False  # by policy, as soon as those have left who drain or leave
    promised: bool = False  # it follows, and others have left or are leaving: its turn
    orphans: int = 0  # of its waiters, those whose wish is nobody's
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    transition: asyncio.Task[LlmuxError | None] | None = None
    moving: Stage | None = None
    commanded: bool = False  # an operator's leaving: not called back by the policy
    backend: Backend | None = None
    checkpoint: Checkpoint | None = None
    tuning: Tuning | None = None
    measured: tuple[Figures, ...] | None = None  # by a tuning without an end, so far or for good
    tried: bool = False  # in ways that are measured; what they take is not what it takes as a rule
    kept: bool = False  # whoever has it come is about to move it, and policy is not to before
    activation: Activation | None = None
    came: Move | None = None  # its last way in, also once it is out again
    parked: bool = False
    parked_memory: int = 0  # bytes
    failures: int = 0  # starts, since the last one that did not fail
    failed_starts: int = 0  # of all times
    failed_moves: Counter[Cost] = field(default_factory=Counter)  # by the way that was wanted
    failed_at: float = 0.0
    failed_why: str = ""  # that last one
    stuck: int = 0  # leavings that failed, since the last one that did not
    deaths: int = 0  # of its server, by itself
    in_since: float = 0.0
    idle_since: float = 0.0
    draining_since: float = 0.0
    may_start_at: float = 0.0
    may_leave_at: float = 0.0
    connect_at: float = 0.0
    held_gpus: tuple[int, ...] | None = None
    last_error: str = ""
    last_used: float = 0.0
    pinned: bool | None = None  # an operator's word, before the configuration's
    removed: bool = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self.config.name

    @property
    def urgency(self) -> int:
        """What the waiters add to its priority: the most urgent one takes the others along."""
        return max(self.priorities, default=0)

    @property
    def meek(self) -> bool:
        """Whether nobody wants it who waits for it: nobody else leaves for their sake."""
        return 0 < len(self.waiters) <= self.orphans

    @property
    def pin(self) -> bool:
        """Whether it never leaves for another model."""
        return self.config.pin if self.pinned is None else self.pinned

    @property
    def held(self) -> tuple[int, ...]:
        """Its GPUs where it is not out; those of the configuration where its unit has not told."""
        return self.config.gpus if self.held_gpus is None else self.held_gpus
