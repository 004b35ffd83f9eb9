# SPDX-License-Identifier: MIT
"""A body of multipart/form-data: the model is one of its parts, and a file may be another.

It is read only as far as the part that names the model, which SDKs send first and curl sends
where it stood on the command line; the rest is looked through as it passes.
"""

from collections.abc import AsyncIterator

from aiohttp import hdrs, web

from ..errors import BadRequest
from . import body
from .parts import HEAD_END, MAX_HEAD, MAX_PARTS, Watch, boundary, is_model, too_many

_MAX_NAME = 4096
_CHUNK = 256 * 1024


def is_form(request: web.BaseRequest) -> bool:
    """Whether its body says that it is one."""
    kinds = request.headers.getall(hdrs.CONTENT_TYPE, [])
    if len(kinds) > 1:
        raise BadRequest("the request has more than one Content-Type")
    return bool(kinds) and kinds[0].partition(";")[0].strip().lower() == "multipart/form-data"


class Form:
    """A form that is being read. `limit`, in bytes, is for all of it."""

    def __init__(self, request: web.BaseRequest, limit: int):
        body.check_length(request, limit)
        self._request = request
        self._pieces = body.Pieces(request)
        self._limit = limit
        self._held = bytearray()
        self._size = 0
        self._ended = False
        self._begun = False
        self._growth = 0
        self._delimiter = b"--" + boundary(request.headers.get("Content-Type", ""))
        self._watch = Watch(b"\r\n" + self._delimiter)
        self._span: tuple[int, int] | None = None

    async def model(self) -> str:
        """What the part `model` says; empty where there is none."""
        place = await self._find(self._delimiter, 0)
        parts = 0
        while place >= 0:
            parts += 1
            if parts > MAX_PARTS:
                raise too_many()
            place += len(self._delimiter)
            head_end = await self._find(HEAD_END, place, most=MAX_HEAD)
            if head_end < 0:
                # The last delimiter: `--`, and nothing that matters.
                return ""
            start = head_end + 4
            named = is_model(bytes(self._held[place:head_end]))
            end = await self._find(b"\r\n" + self._delimiter, start, _MAX_NAME if named else None)
            if named and end >= 0:
                self._span = start, end
                self._watch.see(self._held[end:])
                return self._held[start:end].decode(errors="replace")
            place = end + 2 if end >= 0 else -1
        raise BadRequest("the request's form is not whole")

    def naming(self, name: str) -> None:
        """Write this name where the model's stands; once, before the bytes are asked for."""
        if self._span is not None:
            start, end = self._span
            self._growth = len(name.encode()) - (end - start)
            self._held[start:end] = name.encode()

    @property
    def replayable(self) -> bool:
        """Whether `chunks` can be asked for again."""
        return not self._begun

    async def chunks(self) -> AsyncIterator[bytes]:
        """All of it, the part that was held first."""
        for start in range(0, len(self._held), _CHUNK):
            yield bytes(self._held[start : start + _CHUNK])
        while not self._ended:
            self._held.clear()
            self._begun = True
            if await self._more():
                if self._span is not None:
                    self._watch.see(self._held)
                yield bytes(self._held)

    @property
    def length(self) -> int | None:
        """Its bytes, where the client has told; a compressed one was unpacked meanwhile."""
        told = self._request.content_length
        if told is None or hdrs.CONTENT_ENCODING in self._request.headers:
            return None
        return told + self._growth

    async def _find(self, what: bytes, place: int, most: int | None = None) -> int:
        """Where `what` begins, at `place` or after it; -1 where the form ends without it."""
        while (found := self._held.find(what, place)) < 0:
            if most is not None and len(self._held) - place > most:
                raise BadRequest("a part of the request's form is too long")
            # It may have come in half.
            place = max(place, len(self._held) - len(what) + 1)
            if not await self._more():
                return -1
        return found

    async def _more(self) -> bool:
        chunk = await self._pieces.next()
        if not chunk:
            self._ended = True
            return False
        self._size += len(chunk)
        if self._size > self._limit:
            raise body.too_large(self._limit)
        self._held += chunk
        return True
