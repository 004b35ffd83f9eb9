# SPDX-License-Identifier: MIT
"""One connection to an engine: what is sent, what is taken for its answer, and what is not."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import StreamWriter

from llmuxd.errors import BadRequest
from llmuxd.line import _HELD, Body
from llmuxd.pool import Pool

from .engine import a_raw_server, read_request, until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
OK = b"HTTP/1.1 200 OK\r\n"

Write = Callable[[asyncio.StreamWriter], Awaitable[None]]


def test_layer_of_aiohttp_is_the_one_that_is_written_for() -> None:
    """Where this fails, read what changed in aiohttp.client_proto before you change llmuxd/line.py.

    The tests below are about what it does.
    """
    wanted = {"skip_payload", "read_until_eof", "auto_decompress", "read_bufsize"}
    assert wanted <= set(inspect.signature(ResponseHandler.set_response_params).parameters)
    assert list(inspect.signature(ResponseHandler.feed_data).parameters) == ["self", "data", "size"]
    assert list(inspect.signature(ResponseHandler.__init__).parameters) == ["self", "loop"]
    assert inspect.iscoroutinefunction(ResponseHandler.read)
    assert isinstance(inspect.getattr_static(ResponseHandler, "should_close"), property)
    wanted = {"close", "is_connected", "set_exception", "data_received", "pause_reading"}
    assert wanted <= set(dir(ResponseHandler))
    assert list(inspect.signature(StreamWriter.__init__).parameters)[:3] == [
        "self", "protocol", "loop",
    ]  # fmt: skip
    assert {"write", "write_eof", "enable_chunking"} <= set(dir(StreamWriter))


@contextlib.asynccontextmanager
async def asked_of(write: Write | bytes, *, close: bool = True) -> AsyncIterator[Pool]:
    """A pool before a server that answers each request so, and closes the connection then."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            if isinstance(write, bytes):
                writer.write(write)
            else:
                await write(writer)
            await writer.drain()
            if close:
                return

    async with a_raw_server(serve) as port:
        pool = Pool(port)
        try:
            yield pool
        finally:
            pool.close()
            await gone(pool)


async def gone(pool: Pool) -> None:
    """Wait until every connection of the pool is closed."""
    for _ in range(5000):
        if not pool._lines:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("a connection stays open")


async def answer(pool: Pool, *, no_body: bool = False) -> tuple[int, bytes]:
    async with await pool.ask(GET, no_body=no_body) as reply:
        return reply.status, await reply.body.read()


# Answers


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", b"hello"),
        (OK + b"Content-Length: 0\r\n\r\n", b""),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Sum: 1\r\n\r\n",
         b"hello"),
        (OK + b"\r\nhello", b"hello"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    ],
)  # fmt: skip
async def test_each_form_of_an_answer_is_read(said: bytes, body: bytes) -> None:
    async with asked_of(said) as pool:
        assert await answer(pool) == (200, body)


async def test_answer_that_comes_byte_by_byte_is_read() -> None:
    async def write(writer: asyncio.StreamWriter) -> None:
        for byte in OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    async with asked_of(write) as pool:
        assert await answer(pool) == (200, b"hello")


@pytest.mark.parametrize(
    ("status", "head"),
    [(200, True), (204, False), (304, False), (304, True)],
)
async def test_answer_without_a_body_ends_with_its_head(status: int, head: bool) -> None:
    said = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, 0 if status == 204 else 5)
    # It stays open: who waits for five bytes waits for ever.
    async with asked_of(said, close=False) as pool:
        assert await answer(pool, no_body=head) == (status, b"")


@pytest.mark.parametrize("together", [True, False])
async def test_heads_before_the_answer_are_passed_over(together: bool) -> None:
    first = b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    last = OK + b"Content-Length: 5\r\n\r\nhello"

    async def write(writer: asyncio.StreamWriter) -> None:
        if together:
            writer.write(b"".join((*first, last)))
            return
        for part in (*first, last):
            writer.write(part)
            await asyncio.sleep(0.01)

    async with asked_of(write, close=False) as pool:
        assert await answer(pool) == (200, b"hello")
        assert await answer(pool) == (200, b"hello")
        assert len(pool._lines) == 1


async def test_bytes_of_headers_are_kept() -> None:
    said = OK + b"X-Name: caf\xe9 \xff\r\nx-lower: 1\r\nContent-Length: 0\r\n\r\n"
    async with asked_of(said) as pool, await pool.ask(GET) as reply:
        assert (b"X-Name", b"caf\xe9 \xff") in reply.raw_headers
        assert (b"x-lower", b"1") in reply.raw_headers


# What is no answer


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        # Two lengths: what one reader takes for the body, the next takes for another answer.
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        OK + b"Content-Length: 5, 5\r\n\r\nhello",
        OK + b"Content-Length: -5\r\n\r\nhello",
        OK + b"Content-Length: +5\r\n\r\nhello",
        OK + b"Content-Length: 0x5\r\n\r\nhello",
        OK + b"Content-Length: 99999999999999999999999999\r\n\r\nhello",
        OK + b"X Y: 1\r\nContent-Length: 0\r\n\r\n",
        OK + b"X-Return: a\rContent-Length: 0\r\n\r\n",
        OK + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 099 What\r\nContent-Length: 0\r\n\r\n",
        OK + b"X-Half: 1",
    ],
)
async def test_what_is_no_answer_is_an_error(said: bytes) -> None:
    async with asked_of(said) as pool:
        with pytest.raises((aiohttp.ClientError, OSError)) as error:
            await pool.ask(GET)
        assert "\n" not in str(error.value)
        await gone(pool)


@pytest.mark.parametrize(
    "said",
    [
        OK + b"Content-Length: 100\r\n\r\nhalf",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf and more\r\n0\r\n\r\n",
    ],
)
async def test_answer_that_breaks_off_is_an_error(said: bytes) -> None:
    async with asked_of(said) as pool:
        with pytest.raises((aiohttp.ClientError, OSError)):
            await answer(pool)
        await gone(pool)


# What is sent


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize(
    ("body", "chunked", "sent"),
    [
        (b"", False, b""),
        (b"hello", False, b"hello"),
        (b"x" * 300_000, False, b"x" * 300_000),
        (("he", "llo"), False, b"hello"),
        (("he", "llo"), True, b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    ],
)
async def test_request_is_sent_as_it_is(
    body: bytes | tuple[str, ...], chunked: bool, sent: bytes
) -> None:
    head = POST + b"X: 1\r\n\r\n"
    got = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.readexactly(len(head) + len(sent)))
        writer.write(OK + b"Content-Length: 0\r\n\r\n")
        got.extend(await reader.read())

    what: Body = body if isinstance(body, bytes) else pieces(*(part.encode() for part in body))
    async with a_raw_server(serve) as port:
        pool = Pool(port)
        async with await pool.ask(head, what, chunked=chunked) as reply:
            assert reply.status == 200
        assert len(pool._idle) == 1
        pool.close()
        await gone(pool)
    assert got == head + sent


async def test_body_is_taken_only_as_fast_as_the_server_does() -> None:
    taken = 0

    async def many() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 100_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with a_raw_server(serve) as port:
        pool = Pool(port)
        asking = asyncio.create_task(pool.ask(POST + b"\r\n", many()))
        before = -1
        while before != taken:
            before = taken
            await asyncio.sleep(0.1)
        # What the kernel holds of a connection on loopback, and ours.
        assert 1 <= taken < 150
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await gone(pool)


async def test_answer_may_come_before_the_body_has_been_sent() -> None:
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"first"
        await go_on.wait()
        yield b"never"

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 X\r\nContent-Length: 5\r\n\r\nlarge")

    async with asked_of(write, close=False) as pool:
        async with await pool.ask(POST + b"\r\n", slow()) as reply:
            assert (reply.status, await reply.body.read()) == (413, b"large")
        # The rest of the body would be taken for the next request.
        await gone(pool)


async def test_fault_of_the_body_reaches_who_asked() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise BadRequest("too large")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.read()).endswith(b"half")

    async with a_raw_server(serve) as port:
        pool = Pool(port)
        with pytest.raises(BadRequest, match="too large"):
            await pool.ask(POST + b"Content-Length: 9\r\n\r\n", broken())
        await gone(pool)


async def test_fault_of_the_body_breaks_an_answer_that_has_begun() -> None:
    begun = asyncio.Event()

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        await begun.wait()
        raise BadRequest("too large")

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: 100\r\n\r\nhalf")
        await asyncio.Event().wait()

    async with asked_of(write) as pool:
        async with await pool.ask(POST + b"\r\n", broken()) as reply:
            assert await reply.body.readany() == b"half"
            begun.set()
            with pytest.raises(aiohttp.ClientError):
                await reply.body.readany()
        await gone(pool)


async def test_server_is_held_up_while_nobody_reads_its_answer() -> None:
    sent = 0

    async def write(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + b"\r\n")
        while True:
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    async with asked_of(write) as pool, await pool.ask(GET) as reply:
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 20_000_000
        assert len(await reply.body.readany()) < 1_000_000


async def test_answer_of_many_small_chunks_comes_to_its_end() -> None:
    """aiohttp's parser is told to pause after the last that it has, and does so at the next one."""
    body = StreamReader(ResponseHandler(asyncio.get_running_loop()), _HELD)
    # Before 3.13 it counts bytes alone.
    many = getattr(body, "_high_water_chunks", 1) + 1
    go_on = asyncio.Event()

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * many)
        await go_on.wait()
        writer.write(b"1\r\nb\r\n1\r\nc\r\n0\r\n\r\n")
        await asyncio.Event().wait()

    async with asked_of(write) as pool, await pool.ask(GET) as reply:
        await until(lambda: reply.body.total_bytes >= many)
        assert await reply.body.readany() == b"a" * many
        go_on.set()
        async with asyncio.timeout(5):
            assert await reply.body.read() == b"bc"
