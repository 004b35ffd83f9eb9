# SPDX-License-Identifier: MIT
"""A request's body: read within limits, and the model that its JSON names.

The JSON is gone through once, key by key of the outer object, so that the place of the model's
name is known: another name is written there, and all other bytes stay as they came.
"""

import asyncio
import json
import re
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from ..errors import BadRequest, BodyTooLarge, TooSlow

# Between two pieces of a body, in seconds; nginx's client_body_timeout.
READ_TIMEOUT = 60.0

_read = json.JSONDecoder().raw_decode
_space = re.compile(r"[ \t\n\r]*").match
_SPACE = " \t\n\r"


@dataclass(frozen=True, slots=True)
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


def parse(raw: bytes) -> JsonBody:
    """The body's outer object; BadRequest where it is none."""
    try:
        text = raw.decode("utf-8-sig")
        start = _past_space(text, 0)
        if text[start] != "{":
            _read(text, start)
            raise BadRequest("the request's body is not a JSON object")
        return _object(text, raw, _past_space(text, start + 1))
    except (ValueError, IndexError, RecursionError):
        raise BadRequest("the request's body is not valid JSON") from None


def _object(text: str, raw: bytes, first: int) -> JsonBody:
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
        value, place = _read(text, place)
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
            place = _past_space(text, place + 1)
            if text[place] == "}":
                raise ValueError("a comma too many")
        elif text[place] != "}":
            raise ValueError("a comma is missing")
    if _past_space(text, place + 1) != len(text):
        raise ValueError("something follows")
    return JsonBody(text, raw, model, stream, span, first)


def _past_space(text: str, place: int) -> int:
    match = _space(text, place)
    return match.end() if match else place


async def whole(request: web.BaseRequest, limit: int) -> bytes:
    """The body, decompressed where it came compressed; `limit` is in bytes."""
    check_length(request, limit)
    body = await piece(request)
    if len(body) <= limit and request.content.at_eof():
        return body
    held = bytearray(body)
    while len(held) <= limit:
        more = await piece(request)
        if not more:
            return bytes(held)
        held += more
    raise too_large(limit)


async def piece(request: web.BaseRequest) -> bytes:
    """What has come of the body since the last time; empty only at its end."""
    content = request.content
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
