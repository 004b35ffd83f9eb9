# SPDX-License-Identifier: MIT
"""All models: what is seen of each, and who is told when it changes."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ..backend import Backend
from ..config import Config
from ..errors import NoSuchModel
from ..model.activation import (
    PARKED,
    RELEASED,
    Activation,
    has_parked,
    is_parked,
    noted_place,
    parked_memory,
)
from ..model.checkpoint import Checkpoint
from ..model.moves import Direction, Move
from ..model.tuning import Tuning, why_nothing_open
from ..policy import Stage
from ..state import State, UnitStatus, derive
from ..units import Units
from .models import Model, now
from .tasks import Tasks


class Fleet:
    """The models by name. Whoever changes one says so by `changed`.

    Each of `listeners` is told its name; `dirty` collects the names for whoever decides, who is
    woken by `woken`.
    """

    def __init__(self, config: Config, units: Units, tasks: Tasks):
        self.config = config
        self.units = units
        self.models = {name: Model(model) for name, model in config.models.items()}
        self.listeners: list[Callable[[str], None]] = []
        self.woken = asyncio.Event()
        self.dirty = set(self.models)
        self._tasks = tasks
        units.changed = self._unit_changed

    def get(self, name: str) -> Model:
        """The model of this name (no alias)."""
        try:
            return self.models[name]
        except KeyError:
            raise NoSuchModel(f"there is no model {name!r}") from None

    def resolve(self, name: str) -> Model:
        """The configured model of this name or alias."""
        return self.models[self.config.resolve(name)]

    def state(self, model: Model) -> State:
        """What users see of it now."""
        return derive(
            self.units.status(model.name),
            has_checkpoint=not self.why_no_checkpoint(model),
            leaving=model.moving in (Stage.DRAINING, Stage.LEAVING),
            parked=model.parked,
        )

    def stage(self, model: Model) -> Stage:
        """What policy sees of it now."""
        if model.moving is not None:
            if model.moving is Stage.DRAINING and model.commanded:
                return Stage.LEAVING
            return model.moving
        unit = self.units.status(model.name)
        if unit.down or (unit.up and (unit.frozen or model.parked)):
            return Stage.OUT
        if unit.up:
            return Stage.IN if model.backend is not None else Stage.COMING
        return Stage.LEAVING if unit.active == "deactivating" else Stage.COMING

    def place(self, model: Model) -> tuple[int, ...]:
        """The GPUs that it has, or comes back to, or would be started on."""
        out = self.stage(model) is Stage.OUT and self.units.status(model.name).down
        return model.config.gpus if out else model.held

    def why_no_checkpoint(self, model: Model) -> str:
        """Why it would start cold; empty where its checkpoint is good, as far as is known.

        What can only be seen where it is restored (kernel, CRIU, image) is looked at there.
        """
        if model.checkpoint is None:
            return "none was taken"
        redefined = model.checkpoint.identity.redefined(model.config.definition)
        return model.checkpoint.invalid or redefined or ""

    def why_no_tuning(self, model: Model) -> str:
        """Why nothing that was measured says what it lets go of; empty where something does.

        What it runs on is known of one that runs, and of one that has a checkpoint.
        """
        nothing, tuning = why_nothing_open(model.config), model.tuning
        if nothing or tuning is None:
            return nothing or "it was not tuned"
        redefined = tuning.identity.redefined(model.config.definition)
        if redefined:
            return redefined
        here = tuning.identity
        if model.activation is not None and model.activation.identity is not None:
            here = model.activation.identity
        elif model.checkpoint is not None and not model.checkpoint.invalid:
            here = model.checkpoint.identity
        return tuning.why_not(here) or tuning.nothing

    async def look(self, model: Model) -> None:
        """Read what is on disk: where the server is, the checkpoint, and what was measured."""
        kept = await asyncio.to_thread(_Kept.load, model.name)
        activation = kept.activation
        model.checkpoint, model.tuning, model.came = kept.checkpoint, kept.tuning, kept.came
        unit = self.units.status(model.name)
        model.parked = unit.up and kept.parked
        model.parked_memory = kept.held if model.parked else 0
        if unit.up and activation is not None:
            if model.parked or kept.halfway:
                # Half-way it answers nothing, or wrongly: it has to be woken first.
                await self.close_backend(model)
            elif model.activation != activation or model.backend is None:
                await self.close_backend(model)
                model.backend = Backend(activation.port)
                model.in_since = model.idle_since = now()
            model.activation = activation
            model.held_gpus = activation.gpus
        elif unit.down:
            await self.close_backend(model)
            model.activation = model.held_gpus = None
        elif model.held_gpus is None:
            # On its way before llmuxd was started, and since then the file may say another place.
            model.held_gpus = kept.place
        self.changed(model)

    async def look_at_images(self) -> None:
        """A model has left, and others' images may have been deleted to make room for its own."""
        kept = [m for m in self.models.values() if m.checkpoint and not m.checkpoint.invalid]
        found = await asyncio.to_thread(lambda: [_load_checkpoint(model.name) for model in kept])
        for model, record in zip(kept, found, strict=True):
            if model.transition is None and model.checkpoint != record:
                model.checkpoint = record
                self.changed(model)

    async def _look_back(self, model: Model) -> None:
        await self.look(model)
        await self.look_at_images()

    async def retire_backend(self, model: Model) -> None:
        """Its server takes no new request; the streams that run end by themselves."""
        backend, model.backend = model.backend, None
        if backend is not None:
            await backend.retire()

    async def close_backend(self, model: Model) -> None:
        """Its server is gone, or about to go."""
        backend, model.backend = model.backend, None
        if backend is not None:
            await backend.close()

    def changed(self, model: Model) -> None:
        """Something of it is not what it was, and there may be something to decide."""
        self.tell(model.name)
        self.woken.set()

    def tell(self, name: str) -> None:
        """Something of it is not what it was, and it can wait until something else happens."""
        self.dirty.add(name)
        for listener in self.listeners:
            listener(name)

    def _unit_changed(self, name: str, status: UnitStatus) -> None:
        model = self.models.get(name)
        if model is None:
            return
        if model.moving is Stage.LEAVING and status.text == RELEASED:
            # The next one need not wait until the rest of it is cleared away.
            model.held_gpus = ()
        if status.down and model.transition is None:
            # Gone without us: by hand, or its server died.
            model.deaths += status.active == "failed" and model.activation is not None
            self._tasks.spawn(self._look_back(model))
        elif (
            status.active == "active"
            and model.transition is None
            and (model.parked or status.text == PARKED)
        ):
            # `systemctl reload` by hand has brought it back, or what was asked for by a llmuxd that
            # was killed meanwhile is done.
            self._tasks.spawn(self.look(model))
        elif status.active == "activating" and model.held_gpus is None:
            # By hand, or before llmuxd was started; the first that it does is to tell its place.
            self._tasks.spawn(self.look(model))
        elif not status.up and model.transition is None and model.backend is not None:
            # On its way down, or up again, by hand: the next run listens elsewhere, perhaps.
            model.activation = None
            self._tasks.spawn(self.retire_backend(model))
        self.changed(model)


@dataclass(frozen=True)
class _Kept:
    """What is on disk of a model, read at once: somebody may wait."""

    activation: Activation | None
    checkpoint: Checkpoint | None
    tuning: Tuning | None
    parked: bool
    halfway: bool
    held: int
    place: tuple[int, ...] | None
    came: Move | None

    @classmethod
    def load(cls, name: str) -> "_Kept":
        activation, checkpoint = Activation.load(name), _load_checkpoint(name)
        parked = is_parked(name)
        return cls(
            activation=activation,
            checkpoint=checkpoint,
            tuning=Tuning.load(name),
            parked=parked,
            halfway=not parked and has_parked(name),
            held=parked_memory(name),
            place=noted_place(name),
            came=Move.load(name, Direction.IN),
        )


def _load_checkpoint(name: str) -> Checkpoint | None:
    record = Checkpoint.load(name)
    if record is not None and not record.invalid and not record.valid:
        return record.invalidate(f"the image is missing from {record.directory}")
    return record
