# SPDX-License-Identifier: MIT
"""The connections to one model's HTTP server, of which those that are idle are used again."""

import asyncio
from collections import deque

from .line import Body, Line, Reply

# Servers close idle connections after 5 s (uvicorn, cpp-httplib); a request sent on a connection
# that the other side just closed would be lost, so ours are dropped well before.
KEEPALIVE = 3.0
# For a connection on loopback, in seconds: the server's queue of them is full.
CONNECT_TIMEOUT = 10.0
# The loop's time of never.
FOREVER = 1e12


class BackendGone(ConnectionError):
    """The server never had the request: it can be sent again."""

    @property
    def refused(self) -> bool:
        """Whether nobody listens. Other causes are ours, such as too many open files."""
        return isinstance(self.__cause__, ConnectionRefusedError)


class Pool:
    """To `127.0.0.1:PORT` and nowhere else; as many as there are requests at once."""

    def __init__(self, port: int):
        self.host = f"127.0.0.1:{port}".encode()
        self._port = port
        self._lines: set[Line] = set()
        # The one that rests longest is the first.
        self._idle: deque[Line] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def ask(
        self, head: bytes, body: Body = b"", *, chunked: bool = False, no_body: bool = False,
        fresh: bool = False, deadline: float = FOREVER,
    ) -> Reply:  # fmt: skip
        """Send a request: see Line.ask. `fresh`: on a connection that had none before."""
        line = None if fresh else self._rested()
        if line is None:
            line = await self._connect()
        try:
            message, answer = await line.ask(
                head, body, chunked=chunked, no_body=no_body, deadline=deadline
            )
        except BaseException:
            line.drop()
            raise
        return Reply(line, message, answer, self._give_back)

    def close(self) -> None:
        """Close every connection, and cut what runs on it."""
        self._closed = True
        self._idle.clear()
        if self._sweep is not None:
            self._sweep.cancel()
        for line in self._lines:
            line.cut()

    async def _connect(self) -> Line:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, line = await loop.create_connection(
                    lambda: Line(self._lines), "127.0.0.1", self._port
                )
        except TimeoutError:
            raise ConnectionError(f"it took no connection in {CONNECT_TIMEOUT:g} s") from None
        except OSError as error:
            raise BackendGone(f"it cannot be reached: {error}") from error
        if self._closed:
            line.drop()
            raise BackendGone("it has left")
        return line

    def _rested(self) -> Line | None:
        """The one that was used last: so the others come to their end."""
        since = asyncio.get_running_loop().time() - KEEPALIVE
        while self._idle:
            line = self._idle.pop()
            if line.idle_since > since and line.is_connected():
                return line
            line.drop()
        return None

    def _give_back(self, line: Line) -> None:
        if not line.rest():
            return
        loop = asyncio.get_running_loop()
        line.idle_since = loop.time()
        self._idle.append(line)
        if self._sweep is None:
            self._sweep = loop.call_later(KEEPALIVE, self._drop_old)

    def _drop_old(self) -> None:
        self._sweep = None
        loop = asyncio.get_running_loop()
        since = loop.time() - KEEPALIVE
        while self._idle and self._idle[0].idle_since <= since:
            self._idle.popleft().drop()
        if self._idle:
            self._sweep = loop.call_at(self._idle[0].idle_since + KEEPALIVE, self._drop_old)
