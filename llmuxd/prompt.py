# SPDX-License-Identifier: MIT
"""A future whose task goes on at once, and not in the event loop's next turn."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_Wake = Callable[[Any], object]


class Prompt(asyncio.Future[T]):
    """What one task awaits. But for `give` it is as any other."""

    _waiting: tuple[_Wake, contextvars.Context] | None = None

    def give(self, result: T) -> None:
        """The result: its task runs until it waits for something else, or ends, before this
        returns. Where another task runs, it has to wait for that one all the same."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and asyncio.current_task() is not None:
            super().add_done_callback(waiting[0], context=waiting[1])
            waiting = None
        super().set_result(result)
        if waiting is not None:
            waiting[1].run(waiting[0], self)

    def refuse(self, error: Exception) -> None:
        """The error, unless there is a result, or was a cancellation."""
        if not self.done():
            self.set_exception(error)

    def add_done_callback(self, wake: _Wake, *, context: contextvars.Context | None = None) -> None:
        """How a task says that it waits."""
        if context is None or self._waiting is not None or self.done():
            super().add_done_callback(wake, context=context)
        else:
            self._waiting = wake, context

    def set_result(self, result: T) -> None:
        """As of any other future."""
        self._as_any_other()
        super().set_result(result)

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        """As of any other future."""
        self._as_any_other()
        super().set_exception(exception)

    def cancel(self, msg: Any = None) -> bool:
        """As of any other future."""
        self._as_any_other()
        return super().cancel(msg)

    def _as_any_other(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            super().add_done_callback(waiting[0], context=waiting[1])
