# SPDX-License-Identifier: MIT
"""Units without systemd: the same surface, and the helper's part of a unit's life as well."""

import asyncio
from collections import defaultdict
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from dbus_next.aio import MessageBus

from llmuxd import files, names
from llmuxd.config import Config, ModelConfig, Sleep, Snapshot
from llmuxd.model.activation import (
    Activation,
    Leave,
    Way,
    has_parked,
    note_place,
    noted_place,
    take_leave_order,
    take_park_order,
)
from llmuxd.model.checkpoint import Checkpoint
from llmuxd.model.identity import FORM, Identity
from llmuxd.model.moves import Direction, Move
from llmuxd.model.parking import Parked
from llmuxd.state import UnitStatus
from llmuxd.units import Units

UP = UnitStatus("active", "running", text="serving")
DOWN = UnitStatus()
PARKED_MEMORY = 1000
FAILED = UnitStatus("failed", "failed", result="exit-code", text="it ran out of memory")


def a_config(*models: ModelConfig, max_body: int = 1 << 20) -> Config:
    """A configuration of these models."""
    return Config(Path("llmux.yaml"), {model.name: model for model in models}, max_body)


def a_model(name: str, *gpus: int, aliases: tuple[str, ...] = ()) -> ModelConfig:
    """A model on these GPUs; on GPU 0 where none is named."""
    return ModelConfig(name, "image", gpus=gpus or (0,), aliases=aliases)


def an_activation(name: str, port: int, gpus: tuple[int, ...] = (0,)) -> Activation:
    """What the helper writes for a unit that came up on `port`."""
    return Activation(
        model=name,
        port=port,
        definition="d",
        checkpoint=True,
        gpus=gpus,
        way=Way.COLD,
        seconds=0.5,
    )


class Gate:
    """A place where a verb stops until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def passed(self) -> None:
        self.reached.set()
        await self.opened.wait()

    def open(self) -> None:
        self.opened.set()


class FakeUnits(Units):
    """Each verb is logged; `hold` stops one, `break_start` and `break_stop` make them fail."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.attached = True
        self.log: list[str] = []
        self.ports: dict[str, int] = {}
        self.takes: dict[str, float] = {}  # seconds, of verb and model
        self.pace = 0.0  # of all others
        # Of the ways that are measured, "park 1" or "checkpoint 2": seconds to come back, and those
        # from which it comes back as another.
        self.backs: dict[str, float] = {}
        self.broken: set[str] = set()
        self.parked_by: dict[str, Sleep | None] = {}
        self.fell_back: list[str] = []  # those that did not wake, to their live images
        self.poises: list[str] = []  # what was done to those that are poised, in a log of its own
        self._ready: dict[str, None] = {}
        self._asleep: set[str] = set()
        self._gates: dict[str, list[Gate]] = defaultdict(list)
        self._failing: dict[str, int] = defaultdict(int)
        self._runs = 0

    def hold(self, verb: str, name: str) -> Gate:
        """Stop the next `verb` of the model half-way; verbs are start, stop, reload, thaw."""
        gate = Gate()
        self._gates[f"{verb} {name}"].append(gate)
        return gate

    def break_verb(self, verb: str, name: str, times: int = 1_000_000) -> None:
        """Let the next starts fail, or the next stops leave the unit as it is."""
        self._failing[f"{verb} {name}"] = times

    def mend_verb(self, verb: str, name: str) -> None:
        """No failures any more."""
        self._failing[f"{verb} {name}"] = 0

    def by_hand(self, name: str, status: UnitStatus) -> None:
        """Let systemd say this, without llmuxd's doing."""
        self._set(name, status)

    def up_by_hand(self, name: str) -> None:
        """`systemctl start` of the operator's own."""
        self._come_up(name)

    def die(self, name: str, status: UnitStatus = FAILED) -> None:
        """The server of the model ends by itself, and the helper cleans up."""
        Activation.forget(name)
        Parked.forget(name)
        self._set(name, status)

    async def attach(self, bus: MessageBus) -> None:
        raise NotImplementedError

    def detach(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing runs."""

    async def refresh(self, name: str) -> UnitStatus:
        return self.status(name)

    @property
    def poised(self) -> Set[str]:
        return self._ready.keys()

    def poise(self, name: str) -> None:
        assert self.status(name).down and name not in self._ready
        self.poises.append(f"poise {name}")
        self._ready[name] = None

    def withdraw(self, name: str) -> None:
        self.poises.append(f"withdraw {name}")
        del self._ready[name]

    def forget_poised(self) -> None:
        """Whoever began them is gone."""
        self._ready.clear()

    async def start(self, name: str) -> str:
        if name in self._ready:
            self.poises.append(f"lift {name}")
            del self._ready[name]
        note_place(name, self.gpus_of(name))
        self._set(name, UnitStatus("activating", "start", text="starting"))
        if not await self._verb("start", name):
            self.die(name)
            return "failed"
        self._come_up(name)
        return "done"

    async def stop(self, name: str) -> str:
        before = self.status(name)
        if before.down:
            return "done"
        self._set(name, replace(before, active="deactivating"))
        if not await self._verb("stop", name):
            self._set(name, before)
            return "failed"
        order = take_leave_order(name)
        image = Checkpoint.load(name)
        falls_back = name in self._asleep and image is not None and image.live
        self._asleep.discard(name)
        if order.leave is Leave.CHECKPOINT and falls_back:
            self.fell_back.append(name)
        elif order.leave is Leave.CHECKPOINT:
            record = a_checkpoint(self.config.models[name], self.ports.get(name, 1))
            replace(record, sleep=order.sleep, trial=order.sleep is not None).save()
        elif order.leave is Leave.STOP:
            Checkpoint.forget(name)
        Activation.forget(name)
        Parked.forget(name)
        self._set(name, DOWN)
        return "done"

    async def reload(self, name: str) -> str:
        if not await self._verb("reload", name):
            if has_parked(name):
                Parked().save(name)
            return "failed"
        order = take_park_order(name)
        if order is not None:
            Parked(whole=True, held=PARKED_MEMORY).save(name)
            self.parked_by[name] = order.sleep
        elif (way := f"park {self.parked_by.pop(name, None)}") not in self.broken:
            Parked.forget(name)
            run = Activation.load(name)
            assert run is not None
            seconds = self.backs.get(way, 0.25)
            replace(run, way=Way.RESUME, seconds=seconds).save()
            Move(Way.RESUME, seconds, {}, 0.0).save(name, Direction.IN)
        else:
            Parked().save(name)
            self._asleep.add(name)
        return "done"

    async def thaw(self, name: str) -> None:
        await self._verb("thaw", name)
        self._set(name, replace(self.status(name), freezer="running"))

    def gpus_of(self, name: str) -> tuple[int, ...]:
        """What its helper found in the configuration."""
        model = self.config.models.get(name)
        return model.gpus if model else (0,)

    async def _verb(self, verb: str, name: str) -> bool:
        key = f"{verb} {name}"
        self.log.append(key)
        if self._gates[key]:
            await self._gates[key].pop(0).passed()
        else:
            await asyncio.sleep(self.takes.get(key, self.pace))
        if self._failing[key]:
            self._failing[key] -= 1
            return False
        return True

    def _come_up(self, name: str) -> None:
        model = self.config.models.get(name)
        gpus = noted_place(name) or self.gpus_of(name)
        self._runs += 1  # each run has a length of its own, as in life
        run = an_activation(name, self.ports.get(name, 1), gpus)
        run = replace(run, seconds=run.seconds + self._runs)
        if model is not None:
            run = replace(run, devices=model.device_names, identity=an_identity(model))
        record = Checkpoint.load(name)
        way = f"checkpoint {record.sleep}" if record is not None and record.trial else ""
        if way in self.broken:
            run = replace(run, why_cold="the restore failed: its canary says no")
        elif way:
            run = replace(run, way=Way.RESTORE, seconds=self.backs.get(way, 1.0))
        run.save()
        Move(run.way, run.seconds, {}, 0.0).save(name, Direction.IN)
        self._set(name, UP)


def a_checkpoint(model: ModelConfig, port: int = 1) -> Checkpoint:
    """The record of an image that is there, and was taken of this very definition."""
    directory = files.state_root() / "images" / names.slug(model.name)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "inventory.img").write_text("image")
    identity = an_identity(model)
    live = model.snapshot is Snapshot.LIVE
    return Checkpoint(model.name, "c0ffee", port, identity, 1.0, 2.0, 3, str(directory), live=live)


def an_identity(model: ModelConfig) -> Identity:
    """That of the model on this host."""
    return Identity(model.definition, "i", "m", "k", "c", container_form=FORM)
