# SPDX-License-Identifier: MIT
"""A model makes at most one move at a time: a task, the model's transition."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from ..errors import Internal, LlmuxError
from ..events import Event, about
from ..policy import Stage
from . import pauses
from .fleet import Fleet
from .models import Model, now
from .tasks import Tasks

log = logging.getLogger(__name__)


class Transitions:
    """Begins moves, waits for them, calls them back."""

    def __init__(self, fleet: Fleet, tasks: Tasks):
        self._fleet = fleet
        self._tasks = tasks

    def begin(self, model: Model, moving: Stage, work: Coroutine[Any, Any, None]) -> None:
        """Have the model make this move; it must be making none."""
        assert model.transition is None, f"{model.name} has a transition already"
        model.moving = moving
        model.draining_since = now()
        model.transition = asyncio.create_task(self._run(model, work))
        # Not in the task itself: one that is cancelled before its first step never runs at all.
        model.transition.add_done_callback(lambda task: self._ended(model, work))
        self._tasks.own(model.transition)
        self._fleet.changed(model)

    def call_back(self, model: Model) -> None:
        """Let a model that drains go on; for one that has left already it is too late."""
        if model.transition is not None and model.moving is Stage.DRAINING:
            log.info("%s: nobody waits for its GPU any more, it goes on", model.name,
                     extra=about(model=model.name, phase="draining"))  # fmt: skip
            model.transition.cancel()

    async def command(self, model: Model, work: Coroutine[Any, Any, None]) -> None:
        """Run an operator's leaving as the model's transition, after the one that runs."""
        try:
            while model.transition is not None:
                await asyncio.wait([model.transition])
        except asyncio.CancelledError:
            work.close()
            raise
        if self._fleet.units.status(model.name).down:
            work.close()
            return
        model.commanded = True
        self.begin(model, Stage.DRAINING, work)
        transition = model.transition
        assert transition is not None
        try:
            error = await asyncio.shield(transition)
        except asyncio.CancelledError:
            if model.moving is Stage.DRAINING:
                transition.cancel()
            raise
        if error is not None:
            raise error

    async def _run(self, model: Model, work: Coroutine[Any, Any, None]) -> LlmuxError | None:
        """Make the move; its error is returned, for whoever commanded it."""
        try:
            await work
            return None
        except LlmuxError as error:
            model.last_error = str(error)
            log.error("%s: %s", model.name, error,
                      extra=about(Event.MODEL_FAILED, model=model.name))  # fmt: skip
            return error
        except Exception:
            log.exception("%s: a bug", model.name)
            model.may_leave_at = now() + pauses.LEAVE_AGAIN
            return Internal("internal error")

    def _ended(self, model: Model, work: Coroutine[Any, Any, None]) -> None:
        work.close()
        model.transition = model.moving = None
        model.commanded = False
        self._fleet.changed(model)
