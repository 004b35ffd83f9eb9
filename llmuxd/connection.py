# SPDX-License-Identifier: MIT
"""dbus-next's connection, ended when the bus ends: version 0.2.3 waits for ever in places.

In its authentication it reads an end of file again and again, without a pause; and a call that is
made on a connection that has just been lost is never answered.
"""

from collections.abc import Callable
from typing import Any

from dbus_next import Message
from dbus_next.aio import MessageBus

Answer = Callable[[Message | None, Exception | None], None]


class Connection(MessageBus):
    """A connection whose every wait ends, with OSError or EOFError where it is lost."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Not everybody waits for its end.
        self._disconnect_future.add_done_callback(lambda end: end.cancelled() or end.exception())

    async def _auth_readline(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            read = await self._loop.sock_recv(self._sock, 1)
            if not read:
                raise EOFError("the bus hung up")
            line += read
        return line[:-2].decode()

    def _call(self, message: Message, callback: Answer) -> None:
        if self._disconnected:
            callback(None, EOFError("the connection to the bus is lost"))
            return
        super()._call(message, callback)  # type: ignore[no-untyped-call]
