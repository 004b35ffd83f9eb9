# SPDX-License-Identifier: MIT
"""Units whose start has begun before their place on the GPU is free: loaded, they wait for it.

To everybody else they are as they were before: a unit that waits has nothing of a GPU.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Set
from dataclasses import dataclass
from typing import Any

from . import hold
from .errors import LlmuxError
from .hold import WAITING, Hold
from .state import UnitStatus

log = logging.getLogger(__name__)

CANCEL_AGAIN = 0.1
# The status text of one that waits, and until its helper has said so.
_IDLE = ("", WAITING)

# Begins systemd's job of that name for the model's unit, and waits for its end.
Begin = Callable[[str, str], Awaitable[str]]
Look = Callable[[str], UnitStatus]


@dataclass(eq=False)
class _Poised:
    """`before` is its status from before; `start` is the job that waits, `stop` takes it back."""

    hold: Hold
    before: UnitStatus
    start: asyncio.Task[Any] | None = None
    stop: asyncio.Task[Any] | None = None

    def hides(self, status: UnitStatus) -> bool:
        """Whether that is nothing but the wait, or the way back from it.

        A start by hand may have been past its wait before it could be held back.
        """
        match status.active:
            case "inactive":
                return True
            case "activating":
                return status.text in (*_IDLE, self.before.text)
            case "deactivating":
                return self.stop is not None
            case _:
                return False


class Poised:
    """All of them. `look` has the last that was heard of a model's unit.

    `shows` is told of one that is shown as it is from now on, with what was shown until now.
    """

    def __init__(self, begin: Begin, look: Look, shows: Callable[[str, UnitStatus], None]):
        self._begin = begin
        self._look = look
        self._shows = shows
        self._units: dict[str, _Poised] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def names(self) -> Set[str]:
        """The models whose units wait, or are on their way back from it."""
        return self._units.keys()

    def shown(self, name: str) -> UnitStatus:
        """What is to be seen of the unit."""
        status, poised = self._look(name), self._units.get(name)
        return poised.before if poised is not None and poised.hides(status) else status

    def add(self, name: str) -> None:
        """Have the unit, which is down, begin to start and wait.

        Where that cannot be, nothing is lost: it is started as any other later.
        """
        if name in self._units:
            return
        try:
            held = Hold(name)
        except OSError as error:
            log.info("%s is not begun before its place is free: %s", name, error.strerror)
            return
        poised = self._units[name] = _Poised(held, self._look(name))
        poised.start = self._own(self._start(name, poised))

    def withdraw(self, name: str) -> None:
        """Stop the unit again; nothing where it does not wait, or is stopped already."""
        poised, status = self._units.get(name), self._look(name)
        if poised is None or poised.stop is not None or status.active == "deactivating":
            return
        if not poised.hides(status):
            # Begun by hand, and past its wait: whoever did that wants it.
            self._release(name, poised)
            return
        before = self.shown(name)
        poised.stop = self._own(self._stop(name, poised))
        self._shows(name, before)

    async def go_on(self, name: str) -> str | None:
        """Have the unit start that waits; how its job ended, None where there is none of use."""
        poised = self._units.get(name)
        if poised is None or poised.start is None:
            # One that was killed with all of its unit, after its llmuxd, has left it there.
            hold.forget(name)
            return None
        if poised.stop is not None:
            await asyncio.wait([poised.stop])
            return None
        self._forget(name)
        poised.hold.lift()
        result = str(await asyncio.shield(poised.start))
        return result if self._has_begun(name, result) else None

    async def close(self) -> None:
        """llmuxd ends: they end themselves."""
        while tasks := [*self._tasks]:
            for task in tasks:
                task.cancel()
            # asyncio.wait_for loses a cancel that comes with its answer (Python 3.11).
            await asyncio.wait(tasks, timeout=CANCEL_AGAIN)
        for poised in self._units.values():
            poised.hold.drop()
        self._units.clear()

    def _has_begun(self, name: str, result: str) -> bool:
        """It may have been stopped by hand just before."""
        status = self._look(name)
        ended = status.down or status.active == "deactivating"
        return result == "done" or not ended or status.text not in _IDLE

    async def _start(self, name: str, poised: _Poised) -> str:
        try:
            result = await self._begin("StartUnit", name)
        except LlmuxError as error:
            log.info("%s is not begun before its place is free: %s", name, error)
            result = "failed"
        status = self._look(name)
        if self._units.get(name) is not poised or poised.stop is not None:
            return result
        if result == "done" or status.down or status.active == "deactivating":
            # Started by hand, and past its wait; or stopped by hand, and its helper killed.
            self._release(name, poised)
        else:
            self.withdraw(name)
        return result

    async def _stop(self, name: str, poised: _Poised) -> None:
        ended = False
        try:
            ended = await self._begin("StopUnit", name) == "done" or self._look(name).down
        except LlmuxError as error:
            log.warning("%s: its start is not taken back: %s", name, error)
        if ended:
            # Who has started it by hand since then goes on.
            poised.hold.lift()
        else:
            # Its helper may be there still, and the place is another model's.
            poised.hold.drop()
        self._forget(name)

    def _release(self, name: str, poised: _Poised) -> None:
        self._forget(name)
        poised.hold.lift()

    def _forget(self, name: str) -> None:
        before = self.shown(name)
        del self._units[name]
        self._shows(name, before)

    def _own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
