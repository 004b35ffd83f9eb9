# SPDX-License-Identifier: MIT
"""An answer whose head is the engine's, as it came.

aiohttp's own StreamResponse would make text of each header, a dictionary of the texts, and bytes
of them again.
"""

from email.utils import formatdate

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter

from .headers import Headers, as_bytes, head

# Whatever their headers say (RFC 9110, 6.4.1).
_BODILESS = (204, 304)


class Passing(web.StreamResponse):
    """The answer to `request`; `length` is its body's, in bytes, where the engine tells it.

    `begin`, `write` and `write_eof` send it in pieces; where `whole` is the body, it is sent in one
    packet with the head once aiohttp asks for it, when nobody waits for the engine any more.
    """

    whole: bytes | None = None

    def __init__(
        self, request: web.BaseRequest, status: int, reason: str, headers: Headers,
        length: int | None,
    ):  # fmt: skip
        super().__init__(status=status, reason=reason)
        self._writer = request.writer
        self._length = length
        self._empty = request.method == hdrs.METH_HEAD or status in _BODILESS
        self._framed = length is not None or self._empty or request.version >= HttpVersion11
        self._stays = request.keep_alive and self._framed
        version = b"1.0" if request.version == HttpVersion10 else b"1.1"
        first = b"HTTP/%b %d %b" % (version, status, as_bytes(reason))
        self._head = head(first, [*headers, *self._ours(headers, version)])

    @property
    def keep_alive(self) -> bool:
        """Whether the connection is used again."""
        return self._stays

    def fits(self, most: int) -> bool:
        """Whether its body is known to have no more bytes than this."""
        return self._empty or (self._length is not None and self._length <= most)

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """aiohttp asks for the head, which is sent with what follows, or is out already."""
        return self._writer

    async def begin(self) -> None:
        """Send the head, of which no more is held."""
        sent, self._head = self._head, b""
        await self._writer.write(sent)
        if self._length is None and self._framed and not self._empty:
            self._writer.enable_chunking()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send the next piece of the body."""
        await self._writer.write(data)

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the end; aiohttp holds this object until the connection's next request."""
        if self.whole is not None:
            data, self.whole = self._head + self.whole, None
        self._head = b""
        await self._writer.write_eof(data)

    def _ours(self, headers: Headers, version: bytes) -> list[tuple[bytes, bytes]]:
        """What is of this connection, and the date, which every answer has (RFC 9110, 6.6.1)."""
        ours = []
        if self._length is not None:
            if self._status != 204:
                ours.append((b"Content-Length", b"%d" % self._length))
        elif self._framed and not self._empty:
            ours.append((b"Transfer-Encoding", b"chunked"))
        if not self._stays:
            ours.append((b"Connection", b"close"))
        elif version == b"1.0":
            ours.append((b"Connection", b"keep-alive"))
        if not any(name.lower() == b"date" for name, _ in headers):
            ours.append((b"Date", formatdate(usegmt=True).encode()))
        return ours
