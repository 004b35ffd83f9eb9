# SPDX-License-Identifier: MIT
"""What the switcher remembers of a model."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from ..backend import Backend
from ..config import ModelConfig
from ..errors import LlmuxError
from ..model.activation import Activation
from ..model.checkpoint import Checkpoint
from ..policy import Stage


def now() -> float:
    """The running loop's clock, in seconds: monotonic, and a test's own where it has one."""
    return asyncio.get_running_loop().time()


@dataclass(eq=False)
class Waiter:
    """Who waits for a model: a request, or an operator's job. `arrived` is by `now`."""

    arrived: float
    request: bool
    admitted: asyncio.Future[Backend]


@dataclass(eq=False)
class Model:
    """What the switcher knows of a model beside its unit."""

    config: ModelConfig
    waiters: deque[Waiter] = field(default_factory=deque)
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    transition: asyncio.Task[LlmuxError | None] | None = None
    moving: Stage | None = None
    commanded: bool = False  # an operator's leaving: not called back by the policy
    backend: Backend | None = None
    checkpoint: Checkpoint | None = None
    activation: Activation | None = None
    failures: int = 0
    may_start_at: float = 0.0
    may_leave_at: float = 0.0
    connect_at: float = 0.0
    held_gpus: tuple[int, ...] | None = None
    last_error: str = ""
    last_used: float = 0.0
    removed: bool = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self.config.name

    @property
    def held(self) -> tuple[int, ...]:
        """Its GPUs where it is not out; one that is started by hand says only once it is up."""
        return self.config.gpus if self.held_gpus is None else self.held_gpus
