# SPDX-License-Identifier: MIT
"""A request's body: read within limits, and the model that its JSON names.

The JSON is gone through once, key by key of the outer object, so that the place of the model's
name is known: another name is written there, and all other bytes stay as they came. Of a large
one the other values are skipped, not decoded.
"""

import asyncio
import json
import re
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import hdrs, web

from ..errors import BadRequest, BodyTooLarge, TooSlow

# Between two pieces of a body, in seconds; nginx's client_body_timeout.
READ_TIMEOUT = 60.0

# How zlib is told what it gets: `wbits`.
_WINDOWS = {"identity": None, "gzip": 31, "x-gzip": 31, "deflate": 15}
_KNOWN = "gzip and deflate are understood"
# Bytes; a bomb makes a thousand times as many of what it is.
_UNPACKED_AT_ONCE = 256 * 1024

# More than so many bytes are gone through in a thread, and not decoded: of 32 MiB of brackets
# Python makes 800 MB of lists, and does nothing else for three seconds.
LARGE = 1 << 20
# One: those that take long wait for each other, and nothing else for them.
_READER = ThreadPoolExecutor(1, "bodies")

_read = json.JSONDecoder().raw_decode
# Up to the next bracket or long text, or some of the way: each call holds the interpreter.
_plain = re.compile(r'(?:[^"\[\]{}]{1,10000}|"[^"\\]{0,1000}"){0,1000}').match
_space = re.compile(r"[ \t\n\r]*").match
_SPACE = " \t\n\r"
_OURS = ("model", "stream")

_Value = Callable[[str, int], tuple[Any, int]]
# What some editors put before a text in UTF-8.
_MARK = "\ufeff"


@dataclass(slots=True)
class JsonBody:
    """A JSON object. `model` is empty where it names none; `stream`: an event stream is wanted."""

    text: str
    raw: bytes
    model: str = ""
    stream: bool = False
    _span: tuple[int, int] | None = None
    _first: int = 0

    def naming(self, name: str) -> bytes:
        """The bytes with this model's name in them."""
        if name == self.model:
            return self.raw
        if self._span is not None:
            start, end = self._span
            return f"{self.text[:start]}{json.dumps(name)}{self.text[end:]}".encode()
        comma = "" if self.text[self._first] == "}" else ", "
        head, tail = self.text[: self._first], self.text[self._first :]
        return f'{head}"model": {json.dumps(name)}{comma}{tail}'.encode()


async def read(raw: bytes) -> JsonBody:
    """The body's outer object, whatever it costs; BadRequest where it is none.

    In a large one it is the engine's to find mistakes that are further in.
    """
    if len(raw) <= LARGE:
        return parse(raw)
    return await asyncio.get_running_loop().run_in_executor(_READER, parse, raw, _skip)


def parse(raw: bytes, value_at: _Value = _read) -> JsonBody:
    """`read` for a small one; `value_at` reads the values that do not matter."""
    try:
        text = raw.decode()
        if text.startswith(_MARK):
            text = text[len(_MARK) :]
        start = _past_space(text, 0)
        if text[start] != "{":
            _read(text, start)
            raise BadRequest("the request's body is not a JSON object")
        return _object(text, raw, _past_space(text, start + 1), value_at)
    except (ValueError, IndexError, RecursionError):
        raise BadRequest("the request's body is not valid JSON") from None


def _object(text: str, raw: bytes, first: int, value_at: _Value) -> JsonBody:
    # Each request comes through here: white space is looked for before it is skipped.
    model, stream, span = "", False, None
    place = first
    while text[place] != "}":
        if text[place] != '"':
            raise ValueError("a key is missing")
        key, place = _read(text, place)
        if text[place] in _SPACE:
            place = _past_space(text, place)
        if text[place] != ":":
            raise ValueError("a colon is missing")
        place += 1
        if text[place] in _SPACE:
            place = _past_space(text, place)
        start = place
        value, place = (_read if key in _OURS else value_at)(text, place)
        if key == "model":
            if span is not None:
                # Which of them counts is every parser's own choice.
                raise BadRequest("the request names the model twice")
            span = start, place
            if not isinstance(value, str | None):
                raise BadRequest("the request names no model", "give its name as 'model'")
            model = value or ""
        elif key == "stream":
            stream = value is True
        if text[place] in _SPACE:
            place = _past_space(text, place)
        if text[place] == ",":
            place += 1
            if text[place] in _SPACE:
                place = _past_space(text, place)
            if text[place] == "}":
                raise ValueError("a comma too many")
        elif text[place] != "}":
            raise ValueError("a comma is missing")
    if _past_space(text, place + 1) != len(text):
        raise ValueError("something follows")
    return JsonBody(text, raw, model, stream, span, first)


def _skip(text: str, place: int) -> tuple[None, int]:
    """The place after the value that is at `place`, which is not looked at."""
    if text[place] not in "[{":
        return None, _read(text, place)[1]
    depth = 0
    while True:
        run = _plain(text, place)
        place = run.end() if run else place
        letter = text[place]
        if letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == '"':
            place = _read(text, place)[1]
            continue
        else:
            continue
        place += 1
        if not depth:
            return None, place


def _past_space(text: str, place: int) -> int:
    match = _space(text, place)
    return match.end() if match else place


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
            async with asyncio.timeout(READ_TIMEOUT):
                return await content.readany()
        except TimeoutError:
            raise TooSlow(f"nothing of the request's body came for {READ_TIMEOUT:g} s") from None
        except (ValueError, aiohttp.ClientError, web.RequestPayloadError) as error:
            why = str(error) or type(error).__name__
            raise BadRequest(f"the request's body cannot be read: {why}") from None


def _unpacker(packed: str) -> "zlib._Decompress | None":
    window = _WINDOWS[packed]
    return None if window is None else zlib.decompressobj(window)


async def whole(request: web.BaseRequest, limit: int) -> bytes:
    """The body, unpacked where it came packed; `limit` is in bytes."""
    check_length(request, limit)
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
