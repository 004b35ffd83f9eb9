# SPDX-License-Identifier: MIT
"""One connection to a model's HTTP server: a request goes out as bytes, its answer comes parsed.

aiohttp's own client protocol does the reading: its parser, its limits, its back-pressure. What is
above it there (ClientSession, ClientRequest, ClientResponse) keeps cookies, redirects, proxies and
traces apart, and costs half as much again as all that a proxy does. Used of it is only what is the
same in aiohttp 3.9 and all later ones up to 3.14: `ResponseHandler` with `set_response_params`,
`feed_data`, `pause_reading`, `resume_reading`, `set_exception`, `force_close`, `should_close`,
`is_connected`, `close` and `transport`, and `StreamWriter`; tests/unit/test_line.py says so where
one day it is not.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, cast

import aiohttp
from aiohttp import StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError, RawResponseMessage, StreamWriter

from . import garbage
from .prompt import Prompt
from .short import shorten

# Bytes of an answer that are held for a client that is slow to take it; as many may come on top.
_HELD = 64 * 1024
# What is longer is sent piece by piece, each when the server has taken the one before: whatever it
# has not taken yet is copied. Of a picture in a message that would cost more than it spares.
_AT_ONCE = 2 << 20
_PIECE = 256 * 1024

Body = bytes | AsyncIterator[bytes]
_Answer = tuple[RawResponseMessage, StreamReader]


class Late(Exception):
    """The answer did not begin in time."""


class Line(ResponseHandler):
    """One connection, for one request at a time; among `lines` as long as it is open."""

    def __init__(self, lines: set["Line"]):
        super().__init__(asyncio.get_running_loop())
        self.idle_since = 0.0
        # In place of a queue of answers: there is one at a time.
        shorten(self)
        self._answer: Prompt[_Answer] | None = None
        self._found: _Answer | None = None
        self._lines = lines
        self._wire: asyncio.BaseTransport | None = None
        self._asked = self._slow = False
        self._body: StreamReader | None = None
        self._sending: asyncio.Task[None] | None = None

    async def ask(
        self, head: bytes, body: Body, *, chunked: bool, no_body: bool, deadline: float
    ) -> _Answer:
        """Send a request; the answer's head, and its body as it comes.

        `chunked`: its pieces are sent as chunks. `no_body`: the answer has none, whatever it says.
        `deadline` is the loop's time; Late then. aiohttp.ClientError or OSError where the server
        goes away or speaks no HTTP.
        """
        self.set_response_params(
            skip_payload=no_body, read_until_eof=True, auto_decompress=False, read_bufsize=_HELD
        )
        if self._exception is not None:
            raise self._exception
        self._asked, self._slow = True, False
        self._answer = Prompt(loop=self._loop)
        # Whom aiohttp tells that the connection is lost.
        self._waiter = cast(asyncio.Future[None], self._answer)
        # asyncio.timeout_at would take twice as long.
        timer = self._loop.call_at(deadline, self._answer.refuse, Late())
        self._send(head, body, chunked)
        try:
            message, answer = await self._answer
        except HttpProcessingError as error:
            raise aiohttp.ClientPayloadError(f"it speaks no HTTP: {_brief(error)}") from None
        finally:
            timer.cancel()
            self._waiter = self._answer = None
        if message.code < 200:
            raise aiohttp.ClientPayloadError("it changes the protocol, which nobody asked for")
        return message, answer

    def rest(self) -> bool:
        """The answer has passed. Whether another request can be sent; else it is closed."""
        sent = self._sending is None or self._sending.done()
        if not sent or self.should_close or not self.is_connected():
            self.drop()
            return False
        self._asked = False
        self._body = self._sending = None
        return True

    def cut(self) -> None:
        """Close it at once; who waits for something to come hears so."""
        if self._sending is not None:
            self._sending.cancel()
        if self.transport is not None:
            self.transport.abort()

    def drop(self) -> None:
        """Close it at once; nobody waits for anything any more."""
        self.cut()
        self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        super().connection_made(transport)
        self._wire = transport
        self._lines.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is closed, by whomever."""
        garbage.let_go(self._wire)
        self._wire = None
        self._lines.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of the answer, or what nobody asked for: that would be taken for the answer to the
        next request, whosever it is."""
        answered = self._body is not None and self._body.is_eof()
        if data and (answered or not self._asked):
            self.close()
            return
        super().data_received(data)
        found, self._found = self._found, None
        if found is not None and self._answer is not None and not self._answer.done():
            self._answer.give(found)

    def pause_reading(self) -> None:
        """The client is slower than the server."""
        self._slow = True
        super().pause_reading()

    def resume_reading(self, *args: Any, **kwargs: Any) -> None:
        """Only of an answer that was paused once: aiohttp 3.14 goes through parser and transport
        after each read. Its parser may pause later than it is told to, when nobody knows it."""
        if self._slow:
            super().resume_reading(*args, **kwargs)

    def feed_data(self, data: _Answer, size: int = 0) -> None:
        """An answer's head; one that only says that another follows (1xx) is not passed on."""
        message, body = data
        if 100 <= message.code < 200 and message.code != 101:
            return
        self._body = body
        if not body.is_eof():
            shorten(body)
        if self._answer is None or self._answer.done() or self._found is not None:
            self.force_close()
        else:
            self._found = data

    def _send(self, head: bytes, body: Body, chunked: bool) -> None:
        if isinstance(body, bytes) and len(body) <= _AT_ONCE:
            assert self.transport is not None
            self.transport.writelines((head, body))
            return
        pieces = _pieces(body) if isinstance(body, bytes) else body
        self._sending = asyncio.create_task(self._send_pieces(head, pieces, chunked))

    async def _send_pieces(
        self, head: bytes, pieces: AsyncIterator[bytes] | AsyncIterator[memoryview], chunked: bool
    ) -> None:
        writer = StreamWriter(self, asyncio.get_running_loop())
        try:
            await writer.write(head)
            if chunked:
                writer.enable_chunking()
            async for piece in pieces:
                await writer.write(piece)
            await writer.write_eof()
        except ConnectionError:
            # Whoever waits for the answer hears of it from the connection's end.
            pass
        except Exception as error:
            # The client's fault, as a rule, from whom the pieces come.
            self.set_exception(error)
            self.cut()


class Reply:
    """A server's answer. Its line is `given_back` when the context ends."""

    __slots__ = ("_given_back", "_line", "body", "headers", "raw_headers", "reason", "status")

    def __init__(
        self,
        line: Line,
        message: RawResponseMessage,
        body: StreamReader,
        given_back: Callable[[Line], None],
    ):
        self._line = line
        self._given_back = given_back
        self.body = body
        self.status = message.code
        self.reason = message.reason
        self.headers = message.headers
        self.raw_headers = message.raw_headers

    @property
    def length(self) -> int | None:
        """Of the body, in bytes, where it is told."""
        told = self.headers.get("Content-Length")
        return None if told is None else int(told)

    async def whole(self) -> bytes:
        """The body, where it is short."""
        return self.body.read_nowait() if self.body.is_eof() else await self.body.read()

    def forget(self) -> None:
        """The head has passed: who waits for the body's end need not hold it meanwhile."""
        del self.headers, self.raw_headers

    async def __aenter__(self) -> "Reply":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._given_back(self._line)


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(body)
    for start in range(0, len(body), _PIECE):
        yield view[start : start + _PIECE]


def _brief(error: HttpProcessingError) -> str:
    # Its further lines are the bytes themselves.
    return error.message.partition("\n")[0].strip(" :")
