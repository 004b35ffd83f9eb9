# SPDX-License-Identifier: MIT
"""Who waits for a model, and who is served by it."""

import asyncio
import time

from ..backend import Backend
from ..errors import LlmuxError, ModelFailed, Stopping
from ..policy import Stage
from .fleet import Fleet
from .models import Model, Waiter, now


class Admission:
    """The queues. `stopping`: nobody is let in any more."""

    def __init__(self, fleet: Fleet):
        self.stopping = False
        self._fleet = fleet

    def length(self) -> int:
        """Requests that wait for a model."""
        models = self._fleet.models.values()
        return sum(1 for model in models for waiter in model.waiters if waiter.request)

    async def enter(self, model: Model, *, request: bool) -> Backend:
        """Wait until the model serves; a request is in flight from then on, until it leaves."""
        if self.stopping:
            raise Stopping("llmuxd is stopping")
        if self._fleet.stage(model) is Stage.IN and model.backend is not None:
            if request:
                self._join(model)
            return model.backend
        _refuse_if_failing(model)
        future: asyncio.Future[Backend] = asyncio.get_running_loop().create_future()
        waiter = Waiter(now(), request, future)
        model.waiters.append(waiter)
        self._fleet.changed(model)
        try:
            return await future
        except asyncio.CancelledError:
            if waiter in model.waiters:
                model.waiters.remove(waiter)
            elif request and future.done() and not future.cancelled() and not future.exception():
                # It was let in in the very moment in which its client left.
                self.leave(model)
            self._fleet.changed(model)
            raise

    def leave(self, model: Model) -> None:
        """A request that was let in has ended."""
        model.in_flight -= 1
        model.last_used = time.time()
        if model.in_flight == 0:
            model.idle.set()
        self._fleet.tell(model.name)

    def let_in(self, model: Model) -> None:
        """Serve all who wait, where the model serves."""
        if self._fleet.stage(model) is not Stage.IN or model.backend is None:
            return
        while model.waiters:
            waiter = model.waiters.popleft()
            if waiter.admitted.done():
                continue
            if waiter.request:
                self._join(model)
            waiter.admitted.set_result(model.backend)

    def refuse_all(self, model: Model, error: LlmuxError) -> None:
        """Answer all who wait with `error`."""
        while model.waiters:
            waiter = model.waiters.popleft()
            if not waiter.admitted.done():
                waiter.admitted.set_exception(error)

    def _join(self, model: Model) -> None:
        model.in_flight += 1
        model.idle.clear()
        model.last_used = time.time()
        self._fleet.tell(model.name)


def _refuse_if_failing(model: Model) -> None:
    wait = model.may_start_at - now()
    if model.failures > 1 and wait > 0:
        raise ModelFailed(
            f"{model.name!r} keeps failing: {model.last_error}",
            f"next try in {wait:.0f} s; 'llmuxctl logs {model.name}' shows why",
            retry_after=wait,
        )
