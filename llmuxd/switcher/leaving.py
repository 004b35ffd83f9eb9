# SPDX-License-Identifier: MIT
"""How a model gives up its GPU: drained first, then frozen in memory, on disk, or ended."""

import asyncio
import logging

from .. import memory
from ..config import Tier
from ..errors import LlmuxError, UnitRefused
from ..model.activation import (
    Leave,
    forget_leave,
    off_gpu,
    order_leave,
    order_park,
    take_park_order,
)
from ..policy import Stage
from . import pauses
from .fleet import Fleet
from .models import Model, now

log = logging.getLogger(__name__)


class Leaving:
    """The ways out, each the work of a transition.

    Cancelled while it drains, nothing has happened.
    """

    def __init__(self, fleet: Fleet):
        self._fleet = fleet
        self._units = fleet.units

    async def make_room(self, model: Model) -> None:
        """Leave the GPU for another model, by the tier that was configured if it can be."""
        if model.config.tier is Tier.PARK and not memory.short():
            try:
                await self.park(model)
                return
            except LlmuxError as error:
                log.warning("%s cannot be parked and is checkpointed: %s", model.name, error)
        await self.end(model, Leave.CHECKPOINT)

    async def end(self, model: Model, leave: Leave) -> None:
        """Stop the unit."""
        await self._drain(model)
        model.moving = Stage.LEAVING
        self._fleet.changed(model)
        await self._fleet.close_backend(model)
        if self._units.status(model.name).frozen:
            await self._units.thaw(model.name)
        try:
            await asyncio.to_thread(order_leave, model.name, leave)
            await self._units.stop(model.name)
        except (LlmuxError, OSError) as error:
            model.may_leave_at = now() + pauses.LEAVE_AGAIN
            await asyncio.to_thread(forget_leave, model.name)
            raise UnitRefused(f"{model.name!r} could not be stopped: {error}") from None
        await self._fleet.look(model)
        if not self._units.status(model.name).down:
            model.may_leave_at = now() + pauses.LEAVE_AGAIN
            raise UnitRefused(f"{model.name!r} would not stop", "see 'systemctl status'")

    async def park(self, model: Model) -> None:
        """Freeze the unit."""
        await self._drain(model)
        model.moving = Stage.LEAVING
        await self._fleet.close_backend(model)
        if model.activation is not None and model.activation.devices:
            await self._off_gpu(model)
        await self._units.freeze(model.name)

    async def _off_gpu(self, model: Model) -> None:
        """A frozen unit keeps its GPU memory: the unit's own helper moves that out first."""
        await asyncio.to_thread(order_park, model.name)
        try:
            result = await self._units.reload(model.name)
        finally:
            # One that was not carried out must not meet a later reload.
            await asyncio.to_thread(take_park_order, model.name)
        if result != "done" or not await asyncio.to_thread(off_gpu, model.name):
            raise UnitRefused(
                f"{model.name!r} could not be taken off its GPU",
                f"'llmuxctl logs {model.name}' shows why",
            )

    async def _drain(self, model: Model) -> None:
        if model.in_flight:
            log.info("%s: draining %d requests", model.name, model.in_flight)
            model.idle.clear()
            await model.idle.wait()
