# SPDX-License-Identifier: MIT
"""A server of event streams: so many chunks at such a pace, as the request's head says.

nginx cannot pace single chunks, so this one is Python; it writes to the transport and no more.
"""

import asyncio
import re
import sys

CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
_FRAME = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_WANTED = re.compile(rb'"chunks": ?(\d+), ?"pace_ms": ?(\d+)')


class Stream(asyncio.Protocol):
    def __init__(self) -> None:
        self._got = b""
        self._left = 0
        self._pace = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._got += data
        wanted = _WANTED.search(self._got)
        if wanted:
            self._got = b""
            self._left, self._pace = int(wanted[1]), int(wanted[2]) / 1000
            self._transport.write(_HEAD)
            self._next(asyncio.get_running_loop().time())

    def _next(self, due: float) -> None:
        self._transport.write(_FRAME)
        self._left -= 1
        if self._left > 0:
            due += self._pace
            self._timer = asyncio.get_running_loop().call_at(due, self._next, due)
        else:
            self._transport.write(b"0\r\n\r\n")


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(Stream, "127.0.0.1", port, backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
