# SPDX-License-Identifier: MIT
"""org.freedesktop.systemd1 as far as llmuxd calls it, with late, lost and refused answers."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus

from llmuxd import names
from llmuxd.model.activation import Activation

from .private_bus import PrivateBus, leave

NAME = "org.freedesktop.systemd1"
MANAGER = f"{NAME}.Manager"
ROOT = "/org/freedesktop/systemd1"
_UNIT_KEYS = ("ActiveState", "SubState", "FreezerState")


def unit_path(unit: str) -> str:
    """The object of a unit, its name encoded as systemd does."""
    return f"{ROOT}/unit/{names.object_path(unit).removeprefix(names.MODEL_ROOT)}"


@dataclass
class Unit:
    """The properties of one unit."""

    ActiveState: str = "inactive"
    SubState: str = "dead"
    FreezerState: str = "running"
    Result: str = "success"
    StatusText: str = ""


@dataclass
class Systemd:
    """The mock. Its knobs say what it does with the next calls."""

    units: dict[str, Unit] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    refusals: dict[str, tuple[str, str]] = field(default_factory=dict)  # by member
    speaks: asyncio.Event = field(default_factory=asyncio.Event)  # cleared: no call is answered
    hold_jobs: bool = False  # a job ends by `finish` only
    fail_jobs: bool = False
    early_signal: bool = False  # JobRemoved comes before the call's own reply
    come_up: Callable[[str], None] = lambda name: None
    go_down: Callable[[str], None] = Activation.forget
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    held: dict[str, tuple[str, str]] = field(default_factory=dict)  # job: method, unit
    bus: MessageBus | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _numbers: int = 0

    async def attach(self, bus: PrivateBus) -> None:
        """Take the name on `bus`."""
        self.speaks.set()
        self.bus = (await bus.connect()).bus
        self.bus.add_message_handler(self._on_message)
        await self.bus.request_name(NAME)

    async def close(self) -> None:
        """Leave, unheard calls too."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.bus is not None:
            await leave(self.bus)

    def change(self, unit: str, **values: str) -> None:
        """Set properties, and tell with one signal for each interface, in systemd's order."""
        status = self.units.setdefault(unit, Unit())
        for key, value in values.items():
            setattr(status, key, value)
        for interface in ("Service", "Unit"):
            mine = {key: Variant("s", value) for key, value in values.items()
                    if (key in _UNIT_KEYS) == (interface == "Unit")}  # fmt: skip
            if mine:
                self._signal(
                    unit_path(unit), "org.freedesktop.DBus.Properties", "PropertiesChanged",
                    "sa{sv}as", [f"{NAME}.{interface}", mine, []],
                )  # fmt: skip

    def finish(self, job: str, result: str = "done") -> None:
        """End a held job."""
        method, unit = self.held.pop(job)
        if result == "done":
            self._carry_out(method, unit)
        elif method == "StartUnit":
            self.change(unit, ActiveState="failed", SubState="failed", Result="exit-code")
        self.removed(job, unit, result)

    def finish_unheard(self, job: str) -> None:
        """End a held job without a word about it."""
        method, unit = self.held.pop(job)
        signal, self._signal = self._signal, lambda *_: None  # type: ignore[method-assign]
        try:
            self._carry_out(method, unit)
        finally:
            self._signal = signal  # type: ignore[method-assign]

    def reloading(self, begins: bool) -> None:
        """Tell that systemd begins to read its units anew, or has done so."""
        self._signal(ROOT, MANAGER, "Reloading", "b", [begins])

    def removed(self, job: str, unit: str, result: str) -> None:
        """Tell that a job has ended."""
        number = int(job.rpartition("/")[2])
        self._signal(ROOT, MANAGER, "JobRemoved", "uoss", [number, job, unit, result])

    async def flush(self) -> None:
        """Return when the bus has taken every signal; dbus-next breaks where its socket is full."""
        assert self.bus is not None
        await self.bus.request_name(NAME)

    def _carry_out(self, method: str, unit: str) -> None:
        name = names.from_unit(unit)
        assert name is not None
        if method == "StartUnit":
            self.come_up(name)
            self.change(unit, ActiveState="active", SubState="running", Result="success")
        else:
            self.go_down(name)
            self.change(unit, ActiveState="inactive", SubState="dead")

    def _signal(
        self, path: str, interface: str, member: str, signature: str, body: list[object]
    ) -> None:
        assert self.bus is not None
        self.bus.send(Message.new_signal(path, interface, member, signature, body))

    def _on_message(self, message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        task = asyncio.create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _answer(self, message: Message) -> None:
        assert self.bus is not None
        self.calls.append(" ".join([message.member, *map(str, message.body[:1])]))
        self.asked.set()
        await self.speaks.wait()
        if message.member in self.refusals:
            self.bus.send(Message.new_error(message, *self.refusals[message.member]))
            return
        match message.member:
            case "StartUnit" | "StopUnit":
                self._job(message)
            case "LoadUnit":
                self._reply(message, "o", unit_path(message.body[0]))
            case "Get" if message.path.startswith(f"{ROOT}/job/"):
                if message.path in self.held:
                    self._reply(message, "v", Variant("s", "running"))
                else:
                    gone = "org.freedesktop.DBus.Error.UnknownObject", "Unknown object."
                    self.bus.send(Message.new_error(message, *gone))
            case "Get":
                self._reply(message, "v", Variant("s", self._property(message)))
            case "ListUnitsByPatterns":
                row = ["", "loaded", "active", "running", "", "/x", 0, "", "/"]
                self._reply(message, "a(ssssssouso)", [[unit, *row] for unit in self.units])
            case "ThawUnit":
                self.change(message.body[0], FreezerState="running")
                self._reply(message)
            case _:
                self._reply(message)

    def _reply(self, message: Message, signature: str = "", *body: object) -> None:
        assert self.bus is not None
        self.bus.send(Message.new_method_return(message, signature, list(body)))

    def _property(self, message: Message) -> str:
        by_path = {unit_path(unit): status for unit, status in self.units.items()}
        return str(getattr(by_path.get(message.path, Unit()), message.body[1]))

    def _job(self, message: Message) -> None:
        self._numbers += 1
        unit, job = message.body[0], f"{ROOT}/job/{self._numbers}"
        self.held[job] = (message.member, unit)
        result = "failed" if self.fail_jobs else "done"
        if self.early_signal:
            self.finish(job, result)
            self._reply(message, "o", job)
            return
        self._reply(message, "o", job)
        if message.member == "StartUnit":
            self.change(unit, ActiveState="activating", StatusText="")
        else:
            self.change(unit, ActiveState="deactivating")
        if not self.hold_jobs:
            self.finish(job, result)
