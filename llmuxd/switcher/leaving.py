# SPDX-License-Identifier: MIT
"""How a model gives up its GPU: drained first, then parked in memory, on disk, or ended."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import helper, memory, readahead
from ..config import Sleep, Snapshot, Tier
from ..costs import Cost
from ..errors import LlmuxError, UnitRefused
from ..events import Event, about
from ..model.activation import Leave, forget_leave, order_leave
from ..model.checkpoint import Checkpoint
from ..policy import Stage
from ..state import State
from . import pauses
from .costbook import CostBook
from .fleet import Fleet
from .models import Model, now
from .succession import Succession
from .tasks import Tasks

log = logging.getLogger(__name__)


@dataclass
class Trial:
    """A leaving that is measured: what the model is to let go of, and what it took then.

    `seconds` is None as long as it did not leave by this.
    """

    sleep: Sleep
    seconds: float | None = None


class Leaving:
    """The ways out, each the work of a transition.

    Cancelled while it drains, nothing has happened. `made_way`: by the name of who follows, those
    who left, or are leaving, so that it can come. `gone` is told of who has just ended, before
    anybody has looked at what it left.
    """

    def __init__(self, fleet: Fleet, tasks: Tasks, book: CostBook, succession: Succession):
        self.made_way: dict[str, set[str]] = {}
        self.gone: Callable[[Model], None] = lambda model: None
        self._fleet = fleet
        self._succession = succession
        self._tasks = tasks
        self._units = fleet.units
        self._book = book

    def cut(self, model: Model) -> None:
        """End what it serves; it drains, and is wanted away more than they are wanted."""
        backend, model.backend = model.backend, None
        if backend is not None:
            self._tasks.spawn(backend.close())

    def read_ahead(self) -> None:
        """One leaves: have the image of the one that waits longest in memory when it is gone."""
        waiting = [
            model
            for model in self._fleet.models.values()
            if model.waiters
            and self._fleet.state(model) is State.CHECKPOINTED
            and model.transition is None
        ]
        if waiting:
            self.read_image_ahead(min(waiting, key=lambda model: model.waiters[0].arrived))

    def read_image_ahead(self, model: Model) -> None:
        """Begin to have its image in memory."""
        assert model.checkpoint is not None
        self._tasks.spawn(_read_ahead(model.checkpoint))

    async def make_room(self, model: Model, after: Sequence[Model] = ()) -> None:
        """Leave the GPU for another model, by the tier that was configured if it can be.

        Not before those of `after` have come in; where they do not come, it stays.
        """
        if not await self._see_in(model, after):
            self._succession.forget(model.name, [newcomer.name for newcomer in after])
            return
        await self._put_away(model)
        # Where that failed, or llmuxd ends before, it is tried again.
        self._succession.forget(model.name)

    async def _put_away(self, model: Model) -> None:
        if model.config.tier is Tier.PARK and not memory.short():
            try:
                await self.park(model)
                return
            except LlmuxError as error:
                log.warning("%s cannot be parked and is checkpointed: %s", model.name, error,
                            extra=about(Event.PARK_FAILED, model=model.name))  # fmt: skip
        await self.end(model, Leave.CHECKPOINT)

    def needs_no_gpu(self, model: Model) -> bool:
        """Whether a parked model ends, with all that it keeps, and is on no GPU for that."""
        run = model.activation
        if run is None or not run.devices or not run.checkpoint:
            return True
        killed = run.snapshot is Snapshot.PRISTINE and not self._fleet.why_no_checkpoint(model)
        # What was taken to be measured is not what is kept.
        return killed and model.checkpoint is not None and not model.checkpoint.trial

    async def spill(self, model: Model, can_be_kept: bool) -> None:
        """From memory to disk; who comes to its GPU meanwhile does not wait for that.

        Not `can_be_kept`: another has the GPU that the dump needs, and it ends without one. What it
        has on disk from before stays.
        """
        if self.needs_no_gpu(model) or not can_be_kept:
            # Any other is on its GPU again for the dump.
            model.held_gpus = ()
        what = "from parked to disk" if can_be_kept else (
            "and its GPU has no room for it to be checkpointed: it is stopped, what its server had"
            f" in memory is lost, and it {self._back(model)} the next time"
        )  # fmt: skip
        log.log(
            logging.INFO if can_be_kept else logging.WARNING,
            "%s: memory is short, %s", model.name, what,
            extra=about(Event.MEMORY_SHORT, model=model.name, phase="leaving"),
        )  # fmt: skip
        try:
            await self.end(model, Leave.CHECKPOINT if can_be_kept else Leave.END)
        finally:
            if not self._units.status(model.name).down:
                await self._fleet.look(model)

    def _back(self, model: Model) -> str:
        """How it comes once it has ended as it is."""
        cold = self._fleet.why_no_checkpoint(model)
        return "starts cold" if cold else "is restored from the checkpoint that it has"

    async def end(self, model: Model, leave: Leave, trial: Trial | None = None) -> None:
        """Stop the unit."""
        await self._drain(model)
        begin = now()
        await self._turn_away(model)
        if self._units.status(model.name).down:
            # Its server died while it drained.
            await self._fleet.look(model)
            return
        # A measurement costs no other model its image.
        wanted = [m.name for m in self._fleet.models.values() if m.waiters or trial is not None]
        sleep = trial.sleep if trial is not None else None
        try:
            await self._thaw(model)
            await asyncio.to_thread(order_leave, model.name, leave, wanted, sleep)
            await self._units.stop(model.name)
        except (LlmuxError, OSError) as error:
            self._stays(model)
            await asyncio.to_thread(forget_leave, model.name)
            raise UnitRefused(f"{model.name!r} could not be stopped: {error}") from None
        if trial is None:
            self.gone(model)
        # A unit that was down already has not taken it, and must not meet it at a later stop.
        await asyncio.to_thread(forget_leave, model.name)
        await self._fleet.look(model)
        await self._fleet.look_at_images()
        if not self._units.status(model.name).down:
            self._stays(model)
            raise UnitRefused(f"{model.name!r} would not stop", "see 'systemctl status'")
        model.stuck = 0
        kept = leave is Leave.CHECKPOINT and model.config.checkpoint and not model.config.unit
        if kept and self._fleet.why_no_checkpoint(model):
            # Its helper ended it without one, and says why.
            model.failed_moves[Cost.OUT] += 1
        self._took(model, Cost.OUT, now() - begin, trial)

    def _stays(self, model: Model) -> None:
        model.may_leave_at = now() + pauses.LEAVE_AGAIN
        model.failed_moves[Cost.OUT] += 1
        model.stuck += 1

    async def park(self, model: Model, trial: Trial | None = None) -> None:
        """Have the unit's own helper take it off its GPU and freeze its container.

        Not systemd's FreezeUnit: a frozen unit whose main process dies (the OOM killer's choice,
        perhaps) hangs PID 1, which starts ExecStop in the frozen cgroup and waits for it.
        """
        if model.parked:
            return
        await self._drain(model)
        begin = now()
        await self._turn_away(model)
        await self._thaw(model)
        try:
            why = await helper.park(self._units, model.name, trial.sleep if trial else None)
            await self._fleet.look(model)
            if not model.parked:
                raise UnitRefused(
                    f"{model.name!r} could not be parked: {why or 'it does not say why'}",
                    f"'llmuxctl logs {model.name}' shows more",
                )
        except LlmuxError:
            model.failed_moves[Cost.PARK] += 1
            raise
        self._took(model, Cost.PARK, now() - begin, trial)

    def _took(self, model: Model, cost: Cost, seconds: float, trial: Trial | None) -> None:
        if trial is not None:
            trial.seconds = seconds
        elif not model.tried:
            self._book.learn(model.name, cost, seconds)

    async def _see_in(self, model: Model, newcomers: Sequence[Model]) -> bool:
        """Wait for those who come in beside the model; whether they, or others, need its place."""
        for newcomer in newcomers:
            log.info("%s leaves once %s answers: there is room for both until then", model.name,
                     newcomer.name, extra=about(model=model.name, phase="draining"))  # fmt: skip
            while newcomer.transition is not None:
                await asyncio.wait([newcomer.transition])
        here = [each for each in newcomers if self._fleet.stage(each) is Stage.IN]
        return bool(here) or not newcomers

    async def _turn_away(self, model: Model) -> None:
        """From here on there is no way back."""
        succeeded = model.name in self._succession.pending
        if model.moving is Stage.DRAINING and not model.commanded and not succeeded:
            self._promise(model)
        model.moving = Stage.LEAVING
        self._fleet.changed(model)
        await self._fleet.close_backend(model)

    async def _thaw(self, model: Model) -> None:
        """An operator froze it, perhaps: nothing in there could answer, or end."""
        if self._units.status(model.name).frozen:
            await self._units.thaw(model.name)

    def _promise(self, model: Model) -> None:
        """Its place, to whoever follows there."""
        for other in self._fleet.models.values():
            if other.follows and set(model.held) & set(self._fleet.place(other)):
                other.promised = True
                self.made_way.setdefault(other.name, set()).add(model.name)

    async def _drain(self, model: Model) -> None:
        requests = model.in_flight
        if requests:
            log.info("%s: draining %d requests", model.name, requests,
                     extra=about(model=model.name, phase="draining"))  # fmt: skip
            begin = now()
            await self._thaw(model)
            model.idle.clear()
            await model.idle.wait()
            self._book.learn(model.name, Cost.DRAIN, (now() - begin) / requests)


async def _read_ahead(image: Checkpoint) -> None:
    try:
        await asyncio.to_thread(readahead.read_ahead, Path(image.directory), image.size)
    except OSError as error:
        # The start that comes will say what is wrong with it.
        log.info("%s: its image cannot be read ahead: %s", image.model, error.strerror)
