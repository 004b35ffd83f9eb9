# SPDX-License-Identifier: MIT
"""A body of JSON: the model that its outer object names, and another name written in its place.

A small one is decoded, once. Of a large one the outer object is gone through key by key, and its
other values are skipped, not decoded; so is a small one where its engine knows itself by another
name. All bytes but the name stay as they came.
"""

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadRequest

# More than so many bytes are gone through in a thread, and not decoded: of 32 MiB of brackets
# Python makes 800 MB of lists, and does nothing else for three seconds.
LARGE = 1 << 20
# One: those that take long wait for each other, and nothing else for them.
_READER = ThreadPoolExecutor(1, "bodies")

_read = json.JSONDecoder().raw_decode
# Objects as lists of keys and values: a key that comes twice is seen.
_decode = json.JSONDecoder(object_pairs_hook=list).raw_decode
# Up to the next bracket or long text, or a megabyte of the way: each call holds the interpreter.
_plain = re.compile(r'(?:[^"\[\]{}]{1,10000}|"[^"\\]{0,1000}"){0,100}').match
# The same up to the quote at which a text ends.
_inside = re.compile(r'(?:[^"\\]{1,1000}|\\.){0,1000}', re.DOTALL).match
_space = re.compile(r"[ \t\n\r]*").match
_SPACE = " \t\n\r"
_OURS = ("model", "stream")
# Backslashes and quotes of one text that are looked at one by one, until all of it is gone through.
_PATIENCE = 1000

# What some editors put before a text in UTF-8.
_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the model's name is, and where the first key is or would be."""

    span: tuple[int, int] | None
    first: int


@dataclass(slots=True)
class JsonBody:
    """A JSON object. `model` is empty where it names none; `stream`: an event stream is wanted."""

    text: str
    raw: bytes
    model: str = ""
    stream: bool = False
    _place: _Place | None = field(default=None, compare=False)

    def naming(self, name: str) -> bytes:
        """The bytes with this model's name in them."""
        if name == self.model:
            return self.raw
        text = self.text
        place = self._place or _walk(text, _start(text))[1]
        if place.span is not None:
            start, end = place.span
            return f"{text[:start]}{json.dumps(name)}{text[end:]}".encode()
        comma = "" if text[place.first] == "}" else ", "
        head, tail = text[: place.first], text[place.first :]
        return f'{head}"model": {json.dumps(name)}{comma}{tail}'.encode()


async def read(raw: bytes) -> JsonBody:
    """The body's outer object, whatever it costs; BadRequest where it is none.

    In a large one it is the engine's to find mistakes that are further in.
    """
    if len(raw) <= LARGE:
        return parse(raw)
    return await asyncio.get_running_loop().run_in_executor(_READER, skim, raw)


def parse(raw: bytes) -> JsonBody:
    """`read` for a small one: all of it is decoded."""
    try:
        text = _text(raw)
        found, end = _decode(text, _start(text))
        if end != len(text) and _past_space(text, end) != len(text):
            raise ValueError("something follows")
    except (ValueError, IndexError, RecursionError):
        raise _invalid() from None
    model: str | None = None
    stream = False
    for key, value in found:
        if key == "model":
            model = _checked(model, value)
        elif key == "stream":
            stream = value is True
    return JsonBody(text, raw, model or "", stream)


def skim(raw: bytes) -> JsonBody:
    """`read` for a large one."""
    try:
        text = _text(raw)
        ours, place = _walk(text, _start(text))
    except (ValueError, IndexError, RecursionError):
        raise _invalid() from None
    return JsonBody(text, raw, ours.get("model") or "", ours.get("stream") is True, place)


def _text(raw: bytes) -> str:
    text = raw.decode()
    return text[len(_MARK) :] if text.startswith(_MARK) else text


def _start(text: str) -> int:
    """Where its object begins."""
    start = _past_space(text, 0)
    if text[start] != "{":
        _read(text, start)
        raise BadRequest("the request's body is not a JSON object")
    return start


def _invalid() -> BadRequest:
    return BadRequest("the request's body is not valid JSON")


def _checked(before: str | None, model: object) -> str:
    if before is not None:
        # Which of them counts is every parser's own choice.
        raise BadRequest("the request names the model twice")
    if not isinstance(model, str | None):
        raise BadRequest("the request names no model", "give its name as 'model'")
    return model or ""


def _walk(text: str, start: int) -> tuple[dict[str, Any], _Place]:
    """What is ours of the object that begins at `start`, and where."""
    ours: dict[str, Any] = {}
    span = None
    first = place = _past_space(text, start + 1)
    while text[place] != "}":
        if text[place] != '"':
            raise ValueError("a key is missing")
        key, place = _read(text, place)
        place = _past_space(text, place)
        if text[place] != ":":
            raise ValueError("a colon is missing")
        begin = _past_space(text, place + 1)
        value, place = (_read if key in _OURS else _skip)(text, begin)
        if key == "model":
            value = _checked(ours.get(key), value)
            span = begin, place
        if key in _OURS:
            ours[key] = value
        place = _past_space(text, place)
        if text[place] == ",":
            place = _past_space(text, place + 1)
            if text[place] == "}":
                raise ValueError("a comma too many")
        elif text[place] != "}":
            raise ValueError("a comma is missing")
    if _past_space(text, place + 1) != len(text):
        raise ValueError("something follows")
    return ours, _Place(span, first)


def _skip(text: str, place: int) -> tuple[None, int]:
    """The place after the value that is at `place`, which is not looked at."""
    if text[place] == '"':
        return None, _past_text(text, place)
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
            place = _past_text(text, place)
            continue
        else:
            continue
        place += 1
        if not depth:
            return None, place


def _past_text(text: str, start: int) -> int:
    """The place after the text whose first quote is at `start`: twenty times as fast as to go
    through it, unless it is made of quotes and backslashes."""
    end = start
    for _ in range(_PATIENCE):
        end = text.index('"', end + 1)
        before = end
        while text[before - 1] == "\\" and end - before < _PATIENCE:
            before -= 1
        if end - before == _PATIENCE:
            break
        if (end - before) % 2 == 0:
            return end + 1
    place = start + 1
    while text[place] != '"':
        run = _inside(text, place)
        if run is None or run.end() == place:
            raise ValueError("a text has no end")
        place = run.end()
    return place + 1


def _past_space(text: str, place: int) -> int:
    if place < len(text) and text[place] not in _SPACE:
        return place
    match = _space(text, place)
    return match.end() if match else place
