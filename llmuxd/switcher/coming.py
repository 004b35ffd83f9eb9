# SPDX-License-Identifier: MIT
"""How a model comes to serve: woken, restored or started cold by its unit, or adopted."""

import asyncio
import logging

from .. import helper
from ..costs import Cost
from ..errors import Internal, LlmuxError, ModelFailed, UnitRefused
from ..events import about
from ..model.activation import Leave, has_parked, is_parked, order_leave
from ..policy import Stage
from ..state import State
from . import pauses
from .admission import Admission
from .costbook import CostBook
from .fleet import Fleet
from .models import Model, now
from .succession import Succession

log = logging.getLogger(__name__)


class Coming:
    """The ways in; each is the work of a transition."""

    def __init__(self, fleet: Fleet, admission: Admission, book: CostBook, succession: Succession):
        self._fleet = fleet
        self._succession = succession
        self._units = fleet.units
        self._admission = admission
        self._book = book

    async def come_beside(self, model: Model) -> None:
        """Bring it in while others are there still: from memory or disk, or not at all."""
        # Whoever takes over from a llmuxd that is killed from here on has to know.
        await self._succession.written()
        if self._fleet.state(model) in (State.PARKED, State.CHECKPOINTED):
            await self.activate(model)

    async def activate(self, model: Model) -> None:
        """Bring it in from where it waits."""
        begin = now()
        status = self._units.status(model.name)
        resumed = status.up
        wanted = self._way(model, resumed)
        if status.down:
            model.held_gpus = model.config.gpus
        try:
            if resumed:
                if status.frozen:
                    await self._units.thaw(model.name)
                await self._wake_up(model)
            else:
                await self._units.start(model.name)
            await self._fleet.look(model)
            if model.backend is None:
                raise self._start_error(model)
        except LlmuxError as error:
            self._failed(model, wanted, error)
            raise
        except Exception:
            # Without the pause its waiters would have it started again and again.
            self._failed(model, wanted, Internal("internal error"))
            raise
        model.failures, model.may_start_at, model.last_error = 0, 0.0, ""
        model.stuck = 0
        if model.activation is None:
            return
        way = Cost.RESUME if resumed else Cost(model.activation.way)
        if (wanted, way) == (Cost.RESTORE, Cost.COLD):
            model.failed_moves[wanted] += 1
        if not model.tried:
            self._book.learn(model.name, way, now() - begin)

    def _way(self, model: Model, up: bool) -> Cost:
        """By which it is to come in."""
        if up:
            return Cost.RESUME
        return Cost.COLD if self._fleet.why_no_checkpoint(model) else Cost.RESTORE

    async def connect(self, model: Model) -> None:
        """A unit that came up without us: by hand, or before llmuxd was started."""
        try:
            await self._connect(model)
        except Exception:
            model.connect_at = now() + pauses.LEAVE_AGAIN
            raise

    async def _connect(self, model: Model) -> None:
        if (await self._units.refresh(model.name)).down:
            return
        # Left half parked, perhaps, by who died in the middle.
        await self._wake_up(model)
        await self._fleet.look(model)
        if model.backend is None:
            raise UnitRefused(f"the unit of {model.name!r} is active but does not say where it is")
        # Whatever kept it from starting does so no more.
        model.failures, model.may_start_at, model.last_error = 0, 0.0, ""
        model.stuck = 0
        log.info("%s: adopted on port %d", model.name, model.backend.port,
                 extra=about(model=model.name, phase="adopted"))  # fmt: skip
        self._warn_of_crowd(model)

    def _warn_of_crowd(self, model: Model) -> None:
        """systemd knows nothing of GPUs: who starts a unit by hand may fill one twice."""
        for other in self._fleet.models.values():
            shared = set(other.held) & set(model.held)
            alone = other.config.vram is None or model.config.vram is None
            if other is not model and self._fleet.stage(other) is Stage.IN and shared and alone:
                log.warning("%s was started beside %s on GPU %d, which has room for one",
                            model.name, other.name, min(shared))  # fmt: skip

    async def _wake_up(self, model: Model) -> None:
        """Bring one back that is parked; what does not come back is ended.

        What it had come to is lost then, but for what is in a live image.
        """
        if not await asyncio.to_thread(has_parked, model.name):
            return
        why = await helper.wake(self._units, model.name)
        stays = await asyncio.to_thread(is_parked, model.name)
        told = why or "it does not say why"
        if stays:
            raise ModelFailed(
                f"{model.name!r} could not come back from memory, and waits there still: {told}",
                "end what else holds its GPU: 'nvidia-smi' shows it",
            )
        if await asyncio.to_thread(has_parked, model.name):
            record = model.checkpoint
            kept = record is not None and record.live and not self._fleet.why_no_checkpoint(model)
            leave = Leave.CHECKPOINT if kept else Leave.STOP
            await asyncio.to_thread(order_leave, model.name, leave)
            await self._units.stop(model.name)
            await self._fleet.look(model)
            raise ModelFailed(
                f"{model.name!r} did not come back from memory and was stopped: {told}",
                f"'llmuxctl logs {model.name}' shows more",
            )

    def _start_error(self, model: Model) -> ModelFailed:
        status = self._units.status(model.name)
        why = status.text.removeprefix("failed: ")
        return ModelFailed(
            f"{model.name!r} could not be started: {why or status.result}",
            f"'llmuxctl logs {model.name}' shows more",
        )

    def _failed(self, model: Model, wanted: Cost, error: LlmuxError) -> None:
        pause = pauses.COOL_DOWN[min(model.failures, len(pauses.COOL_DOWN) - 1)]
        model.failures += 1
        model.failed_starts += 1
        model.failed_moves[wanted] += 1
        model.failed_at, model.failed_why = now(), error.message
        model.may_start_at = now() + pause
        model.last_error = error.message
        if model.failures > 1:
            error.retry_after = pause
            self._admission.refuse_all(model, error)
