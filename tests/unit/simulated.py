# SPDX-License-Identifier: MIT
"""An event loop on a simulated clock: whoever sleeps is woken at once, and an hour is nothing."""

import asyncio
import functools
import math
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


# The clock ticks every 10 ns: longer than what asyncio takes for the same moment.
DIGITS = 8


class Stuck(Exception):
    """Everybody waits, and nothing will ever happen."""


class _Jump(selectors.DefaultSelector):
    """Where a loop would sleep, its clock moves on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.about_to_jump: Callable[[], None] = lambda: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise Stuck("nothing will ever happen")
        if not ready and timeout:
            self.about_to_jump()
            self.now = round(self.now + timeout, DIGITS)
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Its threads are none: what is given to one is done on the spot."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def before_the_clock_moves(self, look: Callable[[], None]) -> None:
        """Have `look` called whenever all has happened that can happen now."""
        self._jump.about_to_jump = look

    def time(self) -> float:
        return self._jump.now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, **kwargs: Any
    ) -> asyncio.TimerHandle:
        """At a tick of the clock: one that rang the least bit early would be set anew for ever."""
        ticks = math.ceil(when * 10**DIGITS)
        return super().call_at(round(ticks / 10**DIGITS, DIGITS), callback, *args, **kwargs)

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., R], *args: Any
    ) -> asyncio.Future[R]:
        future: asyncio.Future[R] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def play(work: Coroutine[Any, Any, R]) -> R:
    """Run `work` in a loop of its own."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work)


def simulated(test: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """Have a test run on the simulated clock."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return play(test(*args, **kwargs))

    return run
