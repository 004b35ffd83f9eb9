# SPDX-License-Identifier: MIT
"""A body of JSON: the model that its outer object names, and another name written in its place.

A small one is decoded, once. Of a large one the outer object is gone through key by key, and its
other values are skipped, not decoded; so is a small one where its engine knows itself by another
name. All bytes but the name stay as they came.
"""

import asyncio
import codecs
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import inf
from typing import Any

from ..errors import BadRequest

# More than so many bytes are gone through, and not decoded: of 32 MiB of brackets Python makes
# 800 MB of lists, and does nothing else for three seconds.
LARGE = 1 << 20
# Up to so many it is tried at once: of a picture in a message, most is one text, whose end is found
# in no time, and a thread takes longer than that to begin. In bytes that are gone through one by
# one; what has more of them goes to a thread.
_AT_ONCE = 4 << 20
PATIENCE_AT_ONCE = 64 << 10
# In these: what a step takes.
_STEP = 100
# One: those that take long wait for each other, and nothing else for them.
_READER = ThreadPoolExecutor(1, "bodies")

_read = json.JSONDecoder().raw_decode
# Objects as lists of keys and values: a key that comes twice is seen.
_decode = json.JSONDecoder(object_pairs_hook=list).raw_decode
# Up to the next bracket or long text, or a megabyte of the way: each call holds the interpreter.
_plain = re.compile(rb'(?:[^"\[\]{}]{1,10000}|"[^"\\]{0,1000}"){0,100}').match
# The same up to the quote at which a text ends.
_inside = re.compile(rb'(?:[^"\\]{1,1000}|\\.){0,1000}', re.DOTALL).match
# What is neither text, object nor list, as Python reads it.
_bare = re.compile(
    rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null|NaN|-?Infinity"
).match
_space = re.compile(rb"[ \t\n\r]*").match
_blanks = re.compile(r"[ \t\n\r]*").match
_SPACE = b" \t\n\r"
_QUOTE, _BACKSLASH, _COLON, _COMMA, _END = b'"\\:,}'
_OURS = ("model", "stream")
# Nobody's request has so many; each takes a microsecond of everybody's time.
_KEYS = 1000
# Backslashes and quotes of one text that are looked at one by one, until all of it is gone through.
_PATIENCE = 1000
# What some editors put before a text in UTF-8.
_MARK = "\ufeff"
# Bytes that are looked at at once for whether they are UTF-8.
_CHECKED = 64 << 10


class TooLong(Exception):
    """It takes longer than it may."""


@dataclass(slots=True)
class _Patience:
    """What may be gone through yet, in bytes."""

    left: float = inf

    def spend(self, size: int) -> None:
        """TooLong where that is more."""
        self.left -= size
        if self.left < 0:
            raise TooLong


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the model's name is, and where the first key is or would be."""

    span: tuple[int, int] | None
    first: int


@dataclass(slots=True)
class JsonBody:
    """A JSON object. `model` is empty where it names none; `stream`: an event stream is wanted."""

    raw: bytes
    model: str = ""
    stream: bool = False
    _place: _Place | None = field(default=None, compare=False)

    def naming(self, name: str) -> bytes:
        """The bytes with this model's name in them."""
        if name == self.model:
            return self.raw
        raw = self.raw
        place = self._place or _walk(raw, _start(raw), _Patience())[1]
        told = json.dumps(name).encode()
        # The mark that some editors put before a text is no JSON.
        begin = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
        if place.span is not None:
            start, end = place.span
            return b"".join((raw[begin:start], told, raw[end:]))
        comma = b"" if raw[place.first] == _END else b", "
        return b"".join((raw[begin : place.first], b'"model": ', told, comma, raw[place.first :]))


async def read(raw: bytes) -> JsonBody:
    """The body's outer object, whatever it costs; BadRequest where it is none.

    In a large one it is the engine's to find mistakes that are further in.
    """
    if len(raw) <= LARGE:
        return parse(raw)
    if len(raw) <= _AT_ONCE:
        try:
            return skim(raw, PATIENCE_AT_ONCE)
        except TooLong:
            pass
    return await asyncio.get_running_loop().run_in_executor(_READER, skim, raw)


def parse(raw: bytes) -> JsonBody:
    """`read` for a small one: all of it is decoded."""
    try:
        text = raw.decode()
        start = 0 if text.startswith("{") else _opening(text)
        found, end = _decode(text, start)
        if end != len(text) and _past_blanks(text, end) != len(text):
            raise ValueError("something follows")
    except (ValueError, IndexError, RecursionError):
        raise _invalid() from None
    if len(found) > _KEYS:
        raise _too_many()
    model: str | None = None
    stream = False
    for key, value in found:
        if key == "model":
            model = _checked(model, value)
        elif key == "stream":
            stream = value is True
    return JsonBody(raw, model or "", stream)


def _opening(text: str) -> int:
    """Where its object begins, behind a mark and blanks."""
    start = _past_blanks(text, len(_MARK) if text.startswith(_MARK) else 0)
    if text[start] != "{":
        _read(text, start)
        raise _no_object()
    return start


def _past_blanks(text: str, place: int) -> int:
    match = _blanks(text, place)
    return match.end() if match else place


def skim(raw: bytes, patience: float = inf) -> JsonBody:
    """`read` for a large one; TooLong where more than `patience` bytes would be gone through."""
    try:
        _check_utf8(raw)
        ours, place = _walk(raw, _start(raw), _Patience(patience))
    except (ValueError, IndexError, RecursionError):
        raise _invalid() from None
    return JsonBody(raw, ours.get("model") or "", ours.get("stream") is True, place)


def _check_utf8(raw: bytes) -> None:
    """UnicodeDecodeError, a ValueError, where it is none; piece by piece, it would be a copy."""
    if raw.isascii():
        return
    decode = codecs.getincrementaldecoder("utf-8")().decode
    view = memoryview(raw)
    for begin in range(0, len(raw), _CHECKED):
        decode(view[begin : begin + _CHECKED])
    decode(b"", final=True)


def _start(raw: bytes) -> int:
    """Where its object begins."""
    mark = codecs.BOM_UTF8
    start = _past_space(raw, len(mark) if raw.startswith(mark) else 0)
    if raw[start] not in b"{":
        _skip(raw, start, _Patience())
        raise _no_object()
    return start


def _no_object() -> BadRequest:
    return BadRequest("the request's body is not a JSON object")


def _too_many() -> BadRequest:
    return BadRequest(f"the request's object has more than {_KEYS} keys")


def _invalid() -> BadRequest:
    return BadRequest("the request's body is not valid JSON")


def _checked(before: str | None, model: object) -> str:
    if before is not None:
        # Which of them counts is every parser's own choice.
        raise BadRequest("the request names the model twice")
    if not isinstance(model, str | None):
        raise BadRequest("the request names no model", "give its name as 'model'")
    return model or ""


def _walk(raw: bytes, start: int, patience: _Patience) -> tuple[dict[str, Any], _Place]:
    """What is ours of the object that begins at `start`, and where."""
    ours: dict[str, Any] = {}
    span = None
    first = place = _past_space(raw, start + 1)
    keys = 0
    while raw[place] != _END:
        keys += 1
        if keys > _KEYS:
            raise _too_many()
        patience.spend(_STEP)
        if raw[place] != _QUOTE:
            raise ValueError("a key is missing")
        begin, place = place, _past_text(raw, place, patience)
        key = _value(raw, begin, place)
        place = _past_space(raw, place)
        if raw[place] != _COLON:
            raise ValueError("a colon is missing")
        begin = _past_space(raw, place + 1)
        place = _skip(raw, begin, patience)
        if key in _OURS:
            value = _value(raw, begin, place)
            if key == "model":
                value = _checked(ours.get(key), value)
                span = begin, place
            ours[key] = value
        place = _past_space(raw, place)
        if raw[place] == _COMMA:
            place = _past_space(raw, place + 1)
            if raw[place] == _END:
                raise ValueError("a comma too many")
        elif raw[place] != _END:
            raise ValueError("a comma is missing")
    if _past_space(raw, place + 1) != len(raw):
        raise ValueError("something follows")
    return ours, _Place(span, first)


def _value(raw: bytes, begin: int, end: int) -> object:
    """What is there; of an object or a list no more than that it is one."""
    if raw[begin] in b"[{":
        return ()
    return _read(raw[begin:end].decode())[0]


def _skip(raw: bytes, place: int, patience: _Patience) -> int:
    """The place after the value that is at `place`, which is not looked at."""
    if raw[place] == _QUOTE:
        return _past_text(raw, place, patience)
    if raw[place] not in b"[{":
        found = _bare(raw, place)
        if found is None:
            raise ValueError("a value is missing")
        return found.end()
    depth = 0
    while True:
        run = _plain(raw, place)
        before, place = place, run.end() if run else place
        patience.spend(_STEP + place - before)
        letter = raw[place]
        if letter in b"[{":
            depth += 1
        elif letter in b"]}":
            depth -= 1
        elif letter == _QUOTE:
            place = _past_text(raw, place, patience)
            continue
        else:
            continue
        place += 1
        if not depth:
            return place


def _past_text(raw: bytes, start: int, patience: _Patience) -> int:
    """The place after the text whose first quote is at `start`: twenty times as fast as to go
    through it, unless it is made of quotes and backslashes."""
    end = start
    for _ in range(_PATIENCE):
        end = raw.index(b'"', end + 1)
        before = end
        while raw[before - 1] == _BACKSLASH and end - before < _PATIENCE:
            before -= 1
        patience.spend(end - before)
        if end - before == _PATIENCE:
            break
        if (end - before) % 2 == 0:
            return end + 1
    place = start + 1
    while raw[place] != _QUOTE:
        run = _inside(raw, place)
        if run is None or run.end() == place:
            raise ValueError("a text has no end")
        patience.spend(run.end() - place)
        place = run.end()
    return place + 1


def _past_space(raw: bytes, place: int) -> int:
    if place < len(raw) and raw[place] not in _SPACE:
        return place
    match = _space(raw, place)
    return match.end() if match else place
