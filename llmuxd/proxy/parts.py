# SPDX-License-Identifier: MIT
"""The heads of a form's parts, read so that no engine can read another model in them."""

import warnings

import aiohttp
from aiohttp import hdrs

from ..errors import BadRequest

# The head of one part; browsers and SDKs send a few hundred bytes.
MAX_HEAD = 16 * 1024
# As Starlette's, and so vLLM's, for files and for fields.
MAX_PARTS = 2000
HEAD_END = b"\r\n\r\n"


def boundary(content_type: str) -> bytes:
    """What is between the parts, by the form's Content-Type."""
    found = []
    for item in content_type.split(";")[1:]:
        key, _, value = item.strip().partition("=")
        if key.strip().lower() == "boundary":
            found.append(value.strip().strip('"'))
    # RFC 2046, 5.1.1: 1 to 70 characters.
    if len(found) != 1 or not 0 < len(found[0]) <= 70:
        raise BadRequest("the request's Content-Type names no boundary, or more than one")
    return found[0].encode()


def too_many() -> BadRequest:
    """Each part's head takes its time to read."""
    return BadRequest(f"the request's form has more than {MAX_PARTS} parts")


def is_model(head: bytes) -> bool:
    """Whether this part is the model's name; BadRequest where it could be taken for another one."""
    named = []
    for line in head.decode(errors="replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == hdrs.CONTENT_DISPOSITION.lower():
            named.append(_name(value.strip()))
        elif line[:1] in (" ", "\t"):
            raise _unclear()
    if len(named) > 1:
        raise _unclear()
    return named == ["model"]


def _name(disposition: str) -> str:
    """A part's; empty for a file."""
    with warnings.catch_warnings():
        # aiohttp's words on one that is none have all of it in them.
        warnings.simplefilter("ignore")
        kind, parameters = aiohttp.parse_content_disposition(disposition)
    # `name*=` is for encoded names, which some readers know and others do not.
    if kind is None or any(key.startswith("name*") for key in parameters):
        raise _unclear()
    return "" if "filename" in parameters else parameters.get("name", "")


def _unclear() -> BadRequest:
    return BadRequest("the head of a part of the request's form is not clear")


class Watch:
    """Looks through the parts that follow the model's, as they pass: another one is refused, since
    which of them counts is every parser's own choice."""

    def __init__(self, delimiter: bytes):
        self._delimiter = delimiter
        self._seen = bytearray()
        self._in_head = False
        self._parts = 0

    def see(self, data: bytes | bytearray | memoryview) -> None:
        """The next piece of the form."""
        self._seen += data
        while True:
            what = HEAD_END if self._in_head else self._delimiter
            place = self._seen.find(what)
            if place < 0:
                break
            if self._in_head and is_model(bytes(self._seen[:place])):
                raise BadRequest("the request names the model twice")
            # A line's end before the next delimiter may be the last one of this head.
            del self._seen[: place + (0 if self._in_head else len(what))]
            self._in_head = not self._in_head
            self._parts += self._in_head
            if self._parts > MAX_PARTS:
                raise too_many()
        if not self._in_head:
            del self._seen[: -len(self._delimiter)]
        elif len(self._seen) > MAX_HEAD:
            raise BadRequest("a part of the request's form is too long")
