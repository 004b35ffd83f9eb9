# SPDX-License-Identifier: MIT
"""Who waits for a model, and who is served by it."""

import asyncio
import time
from math import inf
from typing import Any

from ..backend import Backend
from ..costs import Cost
from ..errors import LlmuxError, ModelFailed, NoSuchModel, QueueFull, Stopping, TimedOut
from ..policy import Stage
from .costbook import CostBook
from .fleet import Fleet
from .models import PRESSING, Model, Waiter, Wish, now


class Admission:
    """The queues. `stopping`: nobody is let in any more; `length`: requests that wait."""

    def __init__(self, fleet: Fleet, book: CostBook):
        self.stopping = False
        self.length = 0
        self._fleet = fleet
        self._book = book

    async def enter(
        self, model: Model, wish: Wish, deadline: float = inf, priority: int = 0
    ) -> Backend:
        """Wait until the model serves; a request is in flight from then on, until it leaves.

        At `deadline` the wait is given up.
        """
        if self.stopping:
            raise Stopping("llmuxd is stopping")
        if model.removed:
            raise was_removed(model)
        if wish is Wish.REQUEST:
            self._learn_gap(model)
        if self._fleet.stage(model) is Stage.IN and model.backend is not None:
            if wish is Wish.REQUEST:
                self._join(model)
            return model.backend
        _refuse_if_failing(model)
        if wish is Wish.REQUEST:
            self._refuse_if_full(model)
        waiter = self._line_up(model, wish, priority)
        try:
            async with asyncio.timeout_at(None if deadline == inf else deadline):
                return await self._wait(model, waiter)
        except TimeoutError:
            waited = now() - waiter.arrived
            raise TimedOut(f"{model.name!r} did not serve within {waited:.0f} s") from None

    def leave(self, model: Model) -> None:
        """A request that was let in has ended."""
        model.in_flight -= 1
        model.last_used = time.time()
        if model.in_flight:
            self._fleet.tell(model.name)
            return
        model.idle_since = now()
        model.idle.set()
        if model.config.ttl is not None or self._anybody_waits():
            self._fleet.changed(model)
        else:
            # Nothing follows from it, and to decide so would cost as much as the request did.
            self._fleet.dirty.add(model.name)
            self._fleet.tell(model.name)

    def let_in(self, model: Model) -> None:
        """Serve all who wait, where the model serves."""
        if not model.waiters or self._fleet.stage(model) is not Stage.IN or model.backend is None:
            return
        while model.waiters:
            waiter = model.waiters.popleft()
            self._count(model, waiter, -1)
            if waiter.admitted.done():
                continue
            if waiter.wish is Wish.REQUEST:
                self._join(model)
            waiter.admitted.set_result(model.backend)
        self._fleet.tell(model.name)

    def orphan(self, model: Model, task: asyncio.Task[Any]) -> bool:
        """Nobody wants any more what `task` waits for: it waits on, and is in nobody's way.

        False where it does not wait.
        """
        waiter = next((each for each in model.waiters if each.task is task), None)
        if waiter is None:
            return False
        self._count(model, waiter, -1)
        waiter.wish = Wish.NOBODY
        self._count(model, waiter, 1)
        self._fleet.changed(model)
        return True

    def refuse_all(self, model: Model, error: LlmuxError, until: float = inf) -> None:
        """Answer all with `error` who wait since `until` at the latest."""
        while model.waiters and model.waiters[0].arrived <= until:
            waiter = model.waiters.popleft()
            self._count(model, waiter, -1)
            if not waiter.admitted.done():
                waiter.admitted.set_exception(error)
        self._fleet.changed(model)

    def _line_up(self, model: Model, wish: Wish, priority: int) -> Waiter:
        future: asyncio.Future[Backend] = asyncio.get_running_loop().create_future()
        waiter = Waiter(now(), wish, priority, future, asyncio.current_task())
        model.waiters.append(waiter)
        self._count(model, waiter, 1)
        self._fleet.changed(model)
        return waiter

    async def _wait(self, model: Model, waiter: Waiter) -> Backend:
        future = waiter.admitted
        try:
            return await future
        except asyncio.CancelledError:
            if waiter in model.waiters:
                model.waiters.remove(waiter)
                self._count(model, waiter, -1)
            elif waiter.wish is Wish.REQUEST and future.done() and _was_let_in(future):
                # It was let in in the very moment in which its client left.
                self.leave(model)
            self._fleet.changed(model)
            raise

    def _anybody_waits(self) -> bool:
        return any(model.waiters for model in self._fleet.models.values())

    def _join(self, model: Model) -> None:
        model.in_flight += 1
        model.idle.clear()
        model.last_used = time.time()
        self._fleet.tell(model.name)

    def _count(self, model: Model, waiter: Waiter, change: int) -> None:
        if waiter.wish in PRESSING:
            model.priorities[waiter.priority] += change
            if not model.priorities[waiter.priority]:
                del model.priorities[waiter.priority]
        if waiter.wish is Wish.REQUEST:
            self.length += change
            model.queued += change
        elif waiter.wish is Wish.NOBODY:
            model.orphans += change

    def _learn_gap(self, model: Model) -> None:
        """The first request after the model fell idle tells how long that lasts."""
        if model.idle_since and not model.in_flight and not model.waiters:
            self._book.learn(model.name, Cost.GAP, now() - model.idle_since)

    def _refuse_if_full(self, model: Model) -> None:
        limit = self._fleet.config.queue_limit
        if self.length >= limit:
            what = f"{limit} requests wait for models already"
        elif model.queued >= model.config.queue_limit:
            what = f"{model.config.queue_limit} requests wait for {model.name!r} already"
        else:
            return
        # By then a switch has made the queue shorter.
        raise QueueFull(what, retry_after=self._book.costs.expect(model.name, Cost.RESTORE, 1.0))


def was_removed(model: Model) -> NoSuchModel:
    """What is said to whoever wants it still."""
    return NoSuchModel(f"the model {model.name!r} was removed")


def _was_let_in(future: asyncio.Future[Backend]) -> bool:
    return not future.cancelled() and future.exception() is None


def _refuse_if_failing(model: Model) -> None:
    wait = model.may_start_at - now()
    if model.failures > 1 and wait > 0:
        raise ModelFailed(
            f"{model.name!r} keeps failing: {model.last_error}",
            f"next try in {wait:.0f} s; 'llmuxctl logs {model.name}' shows why",
            retry_after=wait,
        )
