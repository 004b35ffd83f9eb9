# SPDX-License-Identifier: MIT
"""The models' units in systemd: start, stop, reload, thaw, and what they do right now.

Calls go through pid1.py, in a process of its own, one at a time. Signals come over llmuxd's own
bus connection, which never blocks. A job is waited for by its JobRemoved signal, and as a fast
job's signal can overtake the call's reply, the last ones are remembered.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Set

from dbus_next import DBusError, Message, MessageType
from dbus_next.aio import MessageBus

from . import names
from .caller import Caller
from .errors import LlmuxError, SystemdUnreachable
from .poised import Poised
from .state import UnitStatus

log = logging.getLogger(__name__)

_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_ROOT = "/org/freedesktop/systemd1"
_UNIT_PATHS = "/org/freedesktop/systemd1/unit"
# sd_bus_path_encode of "llmux-model@".
_MODEL_PATHS = f"{_UNIT_PATHS}/llmux_2dmodel_40"
_KEYS = {
    "ActiveState": "active",
    "SubState": "sub",
    "FreezerState": "freezer",
    "Result": "result",
    "StatusText": "text",
}
REMEMBERED_JOBS = 256
# A job whose end was not heard is asked for: what PID 1 has to say while it executes itself anew
# (daemon-reexec, an update of systemd) nobody hears.
ASK_AGAIN = 5.0

Changed = Callable[[str, UnitStatus], None]


class Units:
    """The models' units. `changed` is called with a model's name and its unit's new status.

    `attached`: whether there is a connection over which systemd is heard.
    """

    def __init__(self) -> None:
        self.attached = False
        self.changed: Changed = lambda name, status: None
        self.lost: Callable[[], None] = lambda: None
        self._caller = Caller()
        self._status: dict[str, UnitStatus] = {}
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()
        self._poised = Poised(self._job, self._known, self._tell)
        self._catching_up: asyncio.Task[None] | None = None
        self._bus: MessageBus | None = None

    async def attach(self, bus: MessageBus) -> None:
        """Take signals from `bus`, a fresh connection to the system bus, and read what is."""
        bus.add_message_handler(self._on_message)
        for rule in (
            f"type='signal',sender='{_SYSTEMD}',interface='{_MANAGER}',member='JobRemoved'",
            f"type='signal',sender='{_SYSTEMD}',member='PropertiesChanged',"
            f"path_namespace='{_UNIT_PATHS}'",
            f"type='signal',sender='{_SYSTEMD}',interface='{_MANAGER}',member='Reloading'",
        ):
            await self._bus_call(bus, "org.freedesktop.DBus", "/org/freedesktop/DBus",
                                 "org.freedesktop.DBus", "AddMatch", "s", [rule])  # fmt: skip
        self._bus = bus
        await self._subscribe(bus)
        await self._read_all()
        self._fail_jobs()
        self.attached = True

    def detach(self) -> None:
        """The bus connection is gone: nobody will hear a job's end any more."""
        self._bus = None
        self.attached = False
        self._fail_jobs()

    def running(self) -> list[str]:
        """The models whose units are not down, configured or not."""
        return [name for name in self._status if not self.status(name).down]

    def status(self, name: str) -> UnitStatus:
        """The last that was heard of the model's unit; of one that is poised, before that."""
        return self._poised.shown(name)

    async def refresh(self, name: str) -> UnitStatus:
        """Ask systemd for the unit's status."""
        raw = await self._caller.call(method="status", unit=names.unit(name))
        assert isinstance(raw, dict)
        self._set(name, UnitStatus(**{_KEYS[key]: str(value) for key, value in raw.items()}))
        return self.status(name)

    @property
    def poised(self) -> Set[str]:
        """The models whose units wait for `start`, or are on their way back from there."""
        return self._poised.names

    def poise(self, name: str) -> None:
        """Have the unit begin to start if it is down, and wait, with all loaded, for `start`."""
        if self.status(name).down:
            self._poised.add(name)

    def withdraw(self, name: str) -> None:
        """Stop the unit again that is poised."""
        self._poised.withdraw(name)

    async def start(self, name: str) -> str:
        """Start the unit and wait for its job; the result in systemd's words, `done` if good."""
        result = await self._poised.go_on(name)
        return await self._job("StartUnit", name) if result is None else result

    async def stop(self, name: str) -> str:
        """Stop the unit and wait for its job; the job's result."""
        return await self._job("StopUnit", name)

    async def reload(self, name: str) -> str:
        """Reload the unit and wait for its job; the job's result."""
        return await self._job("ReloadUnit", name)

    async def thaw(self, name: str) -> None:
        """Let the processes of a unit go on that an operator froze."""
        await self._caller.call(method="ThawUnit", unit=names.unit(name))
        await self.refresh(name)

    async def close(self) -> None:
        """End the process that calls PID 1; what is poised ends itself."""
        if self._catching_up is not None:
            self._catching_up.cancel()
            await asyncio.gather(self._catching_up, return_exceptions=True)
        await self._poised.close()
        await self._caller.close()

    async def _subscribe(self, bus: MessageBus) -> None:
        """Have systemd send its signals at all; once more is harmless."""
        await self._bus_call(bus, _SYSTEMD, _ROOT, _MANAGER, "Subscribe", "", [])

    async def _read_all(self) -> None:
        listed = {names.from_unit(unit) for unit in await self._list()}
        # One that ended while nobody listened is not listed any more.
        for name in (listed | set(self._status)) - {None}:
            assert name is not None
            await self.refresh(name)

    async def _list(self) -> list[str]:
        pattern = f"{names.UNIT_PREFIX}*{names.UNIT_SUFFIX}"
        listed = await self._caller.call(method="list", pattern=pattern)
        assert isinstance(listed, list)
        return [str(unit) for unit in listed]

    async def _job(self, method: str, name: str) -> str:
        path = str(await self._caller.call(method=method, unit=names.unit(name)))
        result = self._ended.pop(path, None)
        if result is None:
            future = self._jobs.setdefault(path, asyncio.get_running_loop().create_future())
            try:
                result = await self._end_of(path, future)
            finally:
                self._jobs.pop(path, None)
        if result != "done" or not self._shows(method, name):
            await self.refresh(name)
        return result

    def _shows(self, method: str, name: str) -> bool:
        """Whether the job's end has been seen of the unit: systemd tells of that before the job's.

        To ask takes six calls, for each of which it loads the unit anew that is down.
        """
        status = self._known(name)
        return status.down if method == "StopUnit" else status.up

    async def _end_of(self, path: str, future: asyncio.Future[str]) -> str:
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.shield(future), ASK_AGAIN)
            await self._ask_for(path)

    async def _ask_for(self, path: str) -> None:
        """Whoever waits for the job looks for himself if it is over and nobody heard of it."""
        with contextlib.suppress(LlmuxError):
            if not await self._caller.call(method="job", path=path):
                self._job_removed(path, "lost")

    async def _catch_up(self) -> None:
        """PID 1 has read its units anew, or executed itself: its signals may have been missed."""
        try:
            if self._bus is not None:
                await self._subscribe(self._bus)
            await self._read_all()
            for path in list(self._jobs):
                await self._ask_for(path)
        except (LlmuxError, DBusError, OSError, EOFError) as error:
            log.warning("what systemd did meanwhile is not known: %s", error)

    def _fail_jobs(self) -> None:
        """Wake those who wait for a job whose end may be missed; they look for themselves."""
        for future in self._jobs.values():
            if not future.done():
                future.set_result("lost")

    def _on_message(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "JobRemoved" and message.interface == _MANAGER:
            _, path, _, result = message.body
            self._job_removed(path, result)
        elif message.member == "PropertiesChanged" and message.path.startswith(_MODEL_PATHS):
            self._properties_changed(message)
        elif message.member == "Reloading" and message.interface == _MANAGER:
            (begins,) = message.body
            if not begins and (self._catching_up is None or self._catching_up.done()):
                self._catching_up = asyncio.create_task(self._catch_up(), name="catch up")

    def _job_removed(self, path: str, result: str) -> None:
        future = self._jobs.get(path)
        if future is not None and not future.done():
            future.set_result(result)
            return
        self._ended[path] = result
        while len(self._ended) > REMEMBERED_JOBS:
            self._ended.popitem(last=False)

    def _properties_changed(self, message: Message) -> None:
        name = _name_of(message.path)
        if name is None:
            return
        _, values, _ = message.body
        fields = {_KEYS[key]: str(value.value) for key, value in values.items() if key in _KEYS}
        if fields:
            self._set(name, UnitStatus(**(vars(self._known(name)) | fields)))

    def _known(self, name: str) -> UnitStatus:
        return self._status.get(name, UnitStatus())

    def _set(self, name: str, status: UnitStatus) -> None:
        before = self.status(name) if name in self._status else None
        self._status[name] = status
        self._tell(name, before)

    def _tell(self, name: str, before: UnitStatus | None) -> None:
        if (status := self.status(name)) != before:
            self.changed(name, status)

    @staticmethod
    async def _bus_call(
        bus: MessageBus, destination: str, path: str, interface: str, member: str,
        signature: str, body: list[object],
    ) -> None:  # fmt: skip
        reply = await bus.call(
            Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=body,
            )  # fmt: skip
        )
        if reply is not None and reply.message_type is MessageType.ERROR:
            # Subscribing twice on one connection is an error to systemd, and harmless.
            if reply.error_name == "org.freedesktop.systemd1.AlreadySubscribed":
                return
            raise SystemdUnreachable(f"{member} failed: {reply.body[0] if reply.body else ''}")


def _name_of(path: str) -> str | None:
    """The model whose unit has the object path `path`."""
    label = path[len(_UNIT_PATHS) + 1 :]
    unit = names.from_object_path(names.MODEL_ROOT + label)
    return names.from_unit(unit) if unit else None
