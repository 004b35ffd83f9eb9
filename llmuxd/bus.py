# SPDX-License-Identifier: MIT
"""A connection to the system bus: dbus-next's, with what version 0.2.3 of it lacks.

A burst of messages does not cost the connection, a refusal by an async method is an answer and
no crash, a method can ask who calls it, and /'s ObjectManager is where clients look for it.
"""

import asyncio
import inspect
import socket
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from dbus_next import BusType, DBusError, Message, MessageType
from dbus_next import introspection as intr
from dbus_next.service import ServiceInterface

from .connection import Connection

_OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"

# Messages that are taken in before the streams go on. Answering one takes up to 0.3 ms.
MESSAGES_IN_A_ROW = 4

Reply = Callable[[Message], None]
Handler = Callable[[Message, Reply], None]


@dataclass(frozen=True)
class Call:
    """The method call that a task answers, and the connection that it came by."""

    bus: "Bus"
    message: Message


# A unique name means something on its own connection only: after a restart of the bus it may be
# somebody else's. So the two go together.
current_call: ContextVar[Call] = ContextVar("current_call")


class Bus(Connection):
    """A connection to the system bus, for llmuxd itself."""

    def __init__(self) -> None:
        super().__init__(bus_type=BusType.SYSTEM)
        self._writer.sock = _PatientSocket(self._sock)
        self._answers: set[asyncio.Task[None]] = set()
        self._reads_on = False

    def send(self, message: Message) -> Any:
        """Queue a message; object manager's signals leave from the object that is the manager."""
        if message.message_type is MessageType.SIGNAL and message.interface == _OBJECT_MANAGER:
            message.path = "/"
        return super().send(message)

    def _message_reader(self) -> None:
        """The socket is readable."""
        if not self._reads_on:
            self._read_some()

    def _read_some(self) -> None:
        """A few messages, then it is others' turn: dbus-next would read until there is no more.

        What is in its buffer by then makes no socket readable.
        """
        self._reads_on = False
        if self._disconnected:
            return
        try:
            for _ in range(MESSAGES_IN_A_ROW):
                if not self._unmarshaller.unmarshall():
                    return
                self._on_message(self._unmarshaller.message)
                self._unmarshaller = self._create_unmarshaller()
        except Exception as error:
            self._finalize(error)
            return
        self._reads_on = True
        self._loop.call_soon(self._read_some)

    def _make_method_handler(self, interface: ServiceInterface, method: Any) -> Handler:
        if not inspect.iscoroutinefunction(method.fn):
            plain: Handler = super()._make_method_handler(interface, method)  # type: ignore[no-untyped-call]
            return plain

        def handler(message: Message, reply: Reply) -> None:
            task = asyncio.create_task(self._answer(interface, method, message, reply))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

        return handler

    async def _answer(
        self, interface: ServiceInterface, method: Any, message: Message, reply: Reply
    ) -> None:
        current_call.set(Call(self, message))
        try:
            result = await method.fn(interface, *message.body)
            body = [] if result is None else [result]
            answer = Message.new_method_return(message, method.out_signature, body)
        except DBusError as error:
            answer = Message.new_error(message, error.type, error.text)
        if self.connected:
            reply(answer)

    def _introspect_export_path(self, path: str) -> intr.Node:
        node: intr.Node = super()._introspect_export_path(path)  # type: ignore[no-untyped-call]
        if path == "/":
            node.interfaces = [*intr.Node.default().interfaces, *node.interfaces]
            manager = next(each for each in node.interfaces if each.name == _OBJECT_MANAGER)
            manager.signals = _object_manager_signals()
        else:
            node.interfaces = [each for each in node.interfaces if each.name != _OBJECT_MANAGER]
        below = path.rstrip("/") + "/"
        children = {
            export.removeprefix(below).partition("/")[0]
            for export in self._path_exports
            if export.startswith(below)
        }
        node.nodes = [intr.Node(name) for name in sorted(children)]
        return node


class _PatientSocket:
    """dbus-next takes a full socket for a broken one; this one says that it took nothing."""

    def __init__(self, sock: socket.socket):
        self._sock = sock

    def send(self, data: memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0


def _object_manager_signals() -> list[intr.Signal]:
    def out(signature: str, name: str) -> intr.Arg:
        direction: Any = intr.ArgDirection.OUT
        return intr.Arg(signature, direction, name)

    return [
        intr.Signal(
            "InterfacesAdded",
            [out("o", "object_path"), out("a{sa{sv}}", "interfaces_and_properties")],
        ),
        intr.Signal("InterfacesRemoved", [out("o", "object_path"), out("as", "interfaces")]),
    ]
