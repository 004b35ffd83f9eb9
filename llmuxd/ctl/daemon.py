# SPDX-License-Identifier: MIT
"""llmuxd as llmuxctl sees it: calls and signals on the system bus."""

import asyncio
from collections.abc import Callable
from typing import Any

from dbus_next import BusType, Message, MessageFlag, MessageType, Variant
from dbus_next.aio import MessageBus

from ..errors import LlmuxError

_NAME = "org.llmux"
_MANAGER = "org.llmux.Manager"
_PROPERTIES = "org.freedesktop.DBus.Properties"


class CallFailed(LlmuxError):
    """llmuxd, or the bus, answered with an error."""


class Daemon:
    """A connection; use `async with`."""

    def __init__(self) -> None:
        self._bus: MessageBus | None = None
        self._ended: dict[str, str] = {}
        self._phases: dict[str, str] = {}
        self._lost = False
        self._news = asyncio.Event()

    async def __aenter__(self) -> "Daemon":
        try:
            self._bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
        except OSError as error:
            raise CallFailed(f"no system bus: {error}") from None
        self._bus.add_message_handler(self._on_message)
        for rule in (
            f"type='signal',sender='{_NAME}'",
            f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{_NAME}'",
        ):
            await self._call("org.freedesktop.DBus", "/org/freedesktop/DBus",
                             "org.freedesktop.DBus", "AddMatch", "s", [rule])  # fmt: skip
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._bus is not None:
            self._bus.disconnect()

    async def manager(self, method: str, *arguments: str) -> Any:
        """Call a method of /Manager whose arguments are strings; its first result."""
        body = await self._call(
            _NAME, "/Manager", _MANAGER, method, "s" * len(arguments), list(arguments)
        )
        return body[0] if body else None

    async def properties(self, path: str, interface: str) -> dict[str, Any]:
        """All properties of an object."""
        body = await self._call(_NAME, path, _PROPERTIES, "GetAll", "s", [interface])
        return {key: value.value for key, value in body[0].items()}

    async def wait_for_job(self, path: str, on_phase: Callable[[str], None]) -> tuple[str, str]:
        """The result of the job at `path` and its last phase, once it ended."""
        told = ""
        while path not in self._ended:
            self._news.clear()
            phase = self._phases.get(path, "")
            if phase and phase != told:
                told = phase
                on_phase(phase)
            await self._news.wait()
            if self._lost and path not in self._ended:
                raise CallFailed("llmuxd went away", "see 'systemctl status llmuxd'")
        return self._ended[path], self._phases.get(path, "")

    async def cancel(self, path: str) -> None:
        """Ask the job at `path` to give up."""
        await self._call(_NAME, path, "org.llmux.Job", "Cancel", "", [])

    async def _call(
        self, destination: str, path: str, interface: str, member: str, signature: str,
        body: list[Any],
    ) -> list[Any]:  # fmt: skip
        assert self._bus is not None
        reply = await self._bus.call(
            Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=body,
                # A desktop's authentication agent may ask for a password.
                flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION,
            )  # fmt: skip
        )
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            text = str(reply.body[0]) if reply.body else reply.error_name
            hint = ""
            if reply.error_name in (
                "org.freedesktop.DBus.Error.ServiceUnknown",
                "org.freedesktop.DBus.Error.NameHasNoOwner",
            ):
                text, hint = "llmuxd does not run", "systemctl start llmuxd"
            raise CallFailed(text, hint)
        return list(reply.body)

    def _on_message(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "JobRemoved":
            _, path, _, result = message.body
            self._ended[path] = result
        elif message.member == "PropertiesChanged" and message.path.startswith("/Job/"):
            phase = message.body[1].get("Phase")
            if isinstance(phase, Variant):
                self._phases[message.path] = phase.value
        elif (
            message.member == "NameOwnerChanged"
            and message.body[:1] == [_NAME]
            and not message.body[2]
        ):
            self._lost = True
        self._news.set()
