# SPDX-License-Identifier: MIT
"""A request's body, read within limits."""

import asyncio
import zlib

import aiohttp
from aiohttp import hdrs, web

from ..errors import BadRequest, BodyTooLarge, TooSlow
from ..short import shorten
from .moments import now

# Between two pieces of a body, in seconds; nginx's client_body_timeout.
READ_TIMEOUT = 60.0
# A client that sends a byte a minute keeps its place, and a form's its model: less than so many
# bytes in READ_TIMEOUT are too few. A modem sends twenty times as many.
LEAST = 16 * 1024

# How zlib is told what it gets: `wbits`.
_WINDOWS = {"identity": None, "gzip": 31, "x-gzip": 31, "deflate": 15}
_KNOWN = "gzip and deflate are understood"
# Bytes; a bomb makes a thousand times as many of what it is.
_UNPACKED_AT_ONCE = 256 * 1024


class Pieces:
    """A request's body as it comes, unpacked where it came packed.

    Not unpacked by aiohttp: what was refused would be unpacked all the same while its client goes
    on sending, and a bomb go off in processor time.
    """

    def __init__(self, request: web.BaseRequest):
        self._content = request.content
        self._packed = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
        if self._packed not in _WINDOWS:
            raise BadRequest(f"the request's body is packed as {self._packed!r}", _KNOWN)
        self._unpacker = _unpacker(self._packed) if request.body_exists else None
        self._rest = b""
        # What the unpacker holds itself, where it gave as much as it may at once.
        self._full = False
        self._came = 0
        self._waited = 0.0

    @property
    def ended(self) -> bool:
        """Whether all of it has been read, as far as is known without a wait."""
        return self._content.at_eof() and self._unpacker is None

    async def next(self) -> bytes:
        """What has come since the last time; empty only at its end."""
        if self._unpacker is None:
            return await self._raw()
        while True:
            packed = self._rest
            if not packed and not self._full:
                packed = await self._raw()
                if not packed:
                    return self._end()
            piece = self._unpack(packed)
            if piece:
                return piece

    def _unpack(self, packed: bytes) -> bytes:
        assert self._unpacker is not None
        if self._unpacker.eof:
            # gzip files may follow one another (RFC 1952, 2.2).
            self._unpacker = _unpacker(self._packed)
            assert self._unpacker is not None
        try:
            piece = self._unpacker.decompress(packed, _UNPACKED_AT_ONCE)
        except zlib.error as error:
            raise BadRequest(f"the request's body cannot be unpacked: {error}") from None
        self._full = len(piece) == _UNPACKED_AT_ONCE and not self._unpacker.eof
        self._rest = self._unpacker.unused_data or self._unpacker.unconsumed_tail
        return piece

    def _end(self) -> bytes:
        assert self._unpacker is not None
        if not self._unpacker.eof:
            raise BadRequest("the request's body cannot be unpacked: it is not whole")
        return b""

    async def _raw(self) -> bytes:
        content = self._content
        try:
            if content.is_eof():
                # All of it is here.
                return await content.readany()
            began = now()
            async with asyncio.timeout(READ_TIMEOUT):
                piece = await content.readany()
            self._check_pace(len(piece), now() - began)
            return piece
        except TimeoutError:
            raise TooSlow(f"nothing of the request's body came for {READ_TIMEOUT:g} s") from None
        except (ValueError, aiohttp.ClientError, web.RequestPayloadError) as error:
            why = str(error) or type(error).__name__
            raise BadRequest(f"the request's body cannot be read: {why}") from None

    def _check_pace(self, size: int, seconds: float) -> None:
        """What the model's server takes slowly is not the client's fault: waits alone count."""
        self._came += size
        self._waited += seconds
        if self._waited < READ_TIMEOUT:
            return
        if self._came < LEAST:
            raise TooSlow(
                f"only {self._came} bytes of the request's body came in {READ_TIMEOUT:g} s"
            )
        self._came, self._waited = 0, 0.0


def _unpacker(packed: str) -> "zlib._Decompress | None":
    window = _WINDOWS[packed]
    return None if window is None else zlib.decompressobj(window)


async def whole(request: web.BaseRequest, limit: int) -> bytes:
    """The body, unpacked where it came packed; `limit` is in bytes."""
    check_length(request, limit)
    raw = await _whole(request, limit)
    if raw:
        # Not before: a client may send a byte a chunk, and so make long queues.
        shorten(request.content)
    return raw


async def _whole(request: web.BaseRequest, limit: int) -> bytes:
    content = request.content
    if content.is_eof() and hdrs.CONTENT_ENCODING not in request.headers:
        # It came in one packet with its head, as most do.
        raw = content.read_nowait()
        if len(raw) > limit:
            raise too_large(limit)
        return raw
    body = Pieces(request)
    # Joined once: a buffer that grows is moved again and again, at 1.5 ms for a megabyte.
    pieces = [await body.next()]
    size = len(pieces[0])
    while size <= limit:
        if body.ended or not pieces[-1]:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.append(await body.next())
        size += len(pieces[-1])
    raise too_large(limit)


def check_length(request: web.BaseRequest, limit: int) -> None:
    """Refuse at once what says that it is too large."""
    length = request.content_length
    if length is not None and length > limit:
        raise too_large(limit)


def too_large(limit: int) -> BodyTooLarge:
    """The body has more than `limit` bytes."""
    return BodyTooLarge(
        f"the request's body has more than {limit} bytes", "max_body in llmux.yaml is the limit"
    )
