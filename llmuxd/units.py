# SPDX-License-Identifier: MIT
"""The models' units in systemd: start, stop, reload, thaw, and what they do right now.

Calls go through pid1.py, in a process of its own, one at a time. Signals come over llmuxd's own
bus connection, which never blocks. A job is waited for by its JobRemoved signal, and as a fast
job's signal can overtake the call's reply, the last ones are remembered.
"""

import asyncio
import contextlib
import json
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable

from dbus_next import Message, MessageType
from dbus_next.aio import MessageBus

from . import names
from .errors import SystemdUnreachable, UnitRefused
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
# A call is a round trip to PID 1; daemon-reload on a large host takes it seconds.
CALL_TIMEOUT = 60.0
REMEMBERED_JOBS = 256
# One line lists all models' units, at up to 256 bytes each.
REPLY_LIMIT = 16 << 20

Changed = Callable[[str, UnitStatus], None]


class _Caller:
    """The process that calls PID 1; started when needed, again when it died."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def call(self, **request: str) -> object:
        """One request, one answer. A lost process is tried again once: the calls are idempotent."""
        async with self._turn:
            try:
                return await self._ask(request)
            except (OSError, EOFError, TimeoutError):
                await self._end()
            try:
                return await self._ask(request)
            except (OSError, EOFError, TimeoutError) as error:
                await self._end()
                why = str(error) or "no reply"
                raise SystemdUnreachable(f"systemd does not answer: {why}") from None
            except asyncio.CancelledError:
                await self._end()
                raise

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end()

    async def _ask(self, request: dict[str, str]) -> object:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "llmuxd.pid1",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                limit=REPLY_LIMIT,
            )  # fmt: skip
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            line = await asyncio.wait_for(process.stdout.readline(), CALL_TIMEOUT)
        except asyncio.CancelledError:
            # Its answer would be taken for the next call's.
            await self._end()
            raise
        if not line:
            raise EOFError("the caller process ended")
        reply = json.loads(line)
        if "error" in reply:
            raise UnitRefused(f"systemd refused {request['method']}: {reply['error']}")
        return reply["value"]

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
        if process.stdin is not None:
            # What could not be written any more is of no interest.
            process.stdin.close()
            with contextlib.suppress(OSError):
                await process.stdin.wait_closed()


class Units:
    """The models' units. `changed` is called with a model's name and its unit's new status."""

    def __init__(self) -> None:
        self.changed: Changed = lambda name, status: None
        self.lost: Callable[[], None] = lambda: None
        self._caller = _Caller()
        self._status: dict[str, UnitStatus] = {}
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()

    async def attach(self, bus: MessageBus) -> None:
        """Take signals from `bus`, a fresh connection to the system bus, and read what is."""
        bus.add_message_handler(self._on_message)
        for rule in (
            f"type='signal',sender='{_SYSTEMD}',interface='{_MANAGER}',member='JobRemoved'",
            f"type='signal',sender='{_SYSTEMD}',member='PropertiesChanged',"
            f"path_namespace='{_UNIT_PATHS}'",
        ):
            await self._bus_call(bus, "org.freedesktop.DBus", "/org/freedesktop/DBus",
                                 "org.freedesktop.DBus", "AddMatch", "s", [rule])  # fmt: skip
        await self._bus_call(bus, _SYSTEMD, _ROOT, _MANAGER, "Subscribe", "", [])
        listed = {names.from_unit(unit) for unit in await self._list()}
        # One that ended while nobody listened is not listed any more.
        for name in (listed | set(self._status)) - {None}:
            assert name is not None
            await self.refresh(name)
        self._fail_jobs()

    def detach(self) -> None:
        """The bus connection is gone: nobody will hear a job's end any more."""
        self._fail_jobs()

    def running(self) -> list[str]:
        """The models whose units are not down, configured or not."""
        return [name for name, status in self._status.items() if not status.down]

    def status(self, name: str) -> UnitStatus:
        """The last that was heard of the model's unit."""
        return self._status.get(name, UnitStatus())

    async def refresh(self, name: str) -> UnitStatus:
        """Ask systemd for the unit's status."""
        raw = await self._caller.call(method="status", unit=names.unit(name))
        assert isinstance(raw, dict)
        self._set(name, UnitStatus(**{_KEYS[key]: str(value) for key, value in raw.items()}))
        return self.status(name)

    async def start(self, name: str) -> str:
        """Start the unit and wait for its job; the result in systemd's words, `done` if good."""
        return await self._job("StartUnit", name)

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
        """End the process that calls PID 1."""
        await self._caller.close()

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
                result = await asyncio.shield(future)
            finally:
                self._jobs.pop(path, None)
        await self.refresh(name)
        return result

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
            self._set(name, UnitStatus(**(vars(self.status(name)) | fields)))

    def _set(self, name: str, status: UnitStatus) -> None:
        if self._status.get(name) != status:
            self._status[name] = status
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
