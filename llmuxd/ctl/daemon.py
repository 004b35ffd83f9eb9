# SPDX-License-Identifier: MIT
"""llmuxd as llmuxctl sees it: calls and signals on the system bus, of this host or another."""

import asyncio
from typing import Any

from dbus_next import BusType, Message, MessageFlag, MessageType

from ..connection import Connection
from ..errors import LlmuxError
from .mirror import JOB, MANAGER, Mirror
from .remote import NotConnected, RemoteBus

_NAME = "org.llmux"
_BUS = "org.freedesktop.DBus"
_HEAR_SIGNALS = (
    f"type='signal',sender='{_NAME}'",
    f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='{_NAME}'",
)
_BUS_ENDED = "the connection to the system bus ended"
_NOT_THERE = (f"{_BUS}.Error.ServiceUnknown", f"{_BUS}.Error.NameHasNoOwner")


class CallFailed(LlmuxError):
    """llmuxd, or the bus, answered with an error."""


class Daemon:
    """A connection; use `async with`.

    `host`: where ssh is to go, None for this host. `start`: a llmuxd that does not run is started
    by the first call.
    """

    def __init__(self, host: str | None = None, *, start: bool = True) -> None:
        self._host = host
        # A desktop's authentication agent may ask for a password.
        self._flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
        if not start:
            self._flags |= MessageFlag.NO_AUTOSTART
        self._bus: Connection | None = None
        self._mirror = Mirror({})
        self._ended: dict[str, tuple[str, str]] = {}
        self._lost = ""
        self._news = asyncio.Event()
        self._snapshot = 0
        self._connected: asyncio.Future[None] | None = None

    async def __aenter__(self) -> "Daemon":
        try:
            bus = RemoteBus(self._host) if self._host else Connection(bus_type=BusType.SYSTEM)
            self._bus = bus
            await bus.connect()
        except OSError as error:
            raise NotConnected(f"no system bus: {error}") from None
        bus.add_message_handler(self._on_message)
        self._connected = asyncio.ensure_future(bus.wait_for_disconnect())
        self._connected.add_done_callback(self._disconnected)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if isinstance(self._bus, RemoteBus):
            await self._bus.close()
        elif self._bus is not None:
            self._bus.disconnect()
        if self._connected is not None:
            await asyncio.wait([self._connected])

    async def manager(self, method: str, *arguments: str) -> Any:
        """Call a method of /Manager whose arguments are strings; its first result."""
        body = await self._call(
            _NAME, "/Manager", MANAGER, method, "s" * len(arguments), list(arguments)
        )
        return body[0] if body else None

    async def model(self, name: str) -> dict[str, Any]:
        """All properties of a model, by its name or an alias."""
        path = await self.manager("GetModel", name)
        return await self._properties(path, "org.llmux.Model")

    async def version(self) -> str:
        """The version of the llmuxd that runs."""
        return str((await self._properties("/Manager", MANAGER))["Version"])

    async def objects(self) -> Mirror:
        """A copy of all objects, as they are now; a caller that listens has it kept up to date."""
        assert self._bus is not None
        self._snapshot = self._bus.next_serial()
        await self._call(
            _NAME, "/", f"{_BUS}.ObjectManager", "GetManagedObjects", "", [], self._snapshot
        )
        return self._mirror

    async def listen(self) -> None:
        """Hear of all changes from now on."""
        for rule in _HEAR_SIGNALS:
            await self._call(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", [rule])

    async def news(self) -> None:
        """Wait until something changed; CallFailed where llmuxd went away."""
        await self._news.wait()
        self._news.clear()
        if self._lost:
            raise CallFailed(self._lost, "see 'systemctl status llmuxd'")

    def job(self, path: str) -> dict[str, Any]:
        """The properties of a job that runs, for a caller that listens."""
        return self._mirror.jobs().get(path, {})

    def ended(self, job: str) -> tuple[str, str] | None:
        """The result of the job of this path and its last phase; None while it runs."""
        return self._ended.get(job)

    async def cancel(self, job: str) -> None:
        """Ask a job to give up."""
        await self._call(_NAME, job, JOB, "Cancel", "", [])

    async def _properties(self, path: str, interface: str) -> dict[str, Any]:
        body = await self._call(_NAME, path, f"{_BUS}.Properties", "GetAll", "s", [interface])
        return {key: value.value for key, value in body[0].items()}

    async def _call(
        self, destination: str, path: str, interface: str, member: str, signature: str,
        body: list[Any], serial: int = 0,
    ) -> list[Any]:  # fmt: skip
        assert self._bus is not None
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
            serial=serial,
            flags=self._flags,
        )
        try:
            reply = await self._bus.call(message)
        except (OSError, EOFError):
            raise NotConnected(_BUS_ENDED) from None
        assert reply is not None
        if reply.message_type is not MessageType.ERROR:
            return list(reply.body)
        if reply.error_name in _NOT_THERE:
            raise CallFailed(
                "llmuxd does not run",
                "systemctl start llmuxd; if it does not stay up: journalctl -u llmuxd",
            )
        raise CallFailed(str(reply.body[0]) if reply.body else reply.error_name, "")

    def _on_message(self, message: Message) -> None:
        if message.message_type is MessageType.METHOD_RETURN:
            if message.reply_serial == self._snapshot:
                # Here, and not where it is waited for: the next signal may come before that runs.
                self._mirror = Mirror(message.body[0])
            return
        if message.member == "JobRemoved" and message.interface == MANAGER:
            _, path, _, result = message.body
            # Its object goes next.
            self._ended[path] = result, str(self.job(path).get("Phase", ""))
        elif message.member == "NameOwnerChanged" and message.body[0] == _NAME:
            # Whoever comes next knows nothing of the jobs that ran.
            self._lost = "llmuxd went away" if message.body[1] else ""
        self._mirror.apply(message)
        self._news.set()

    def _disconnected(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled():
            future.exception()
        self._lost = _BUS_ENDED
        self._news.set()
