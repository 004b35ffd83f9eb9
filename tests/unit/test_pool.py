# SPDX-License-Identifier: MIT
"""The connections to an engine: which are used again, and which never."""

import asyncio
import errno
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from llmuxd import pool as pool_of_lines
from llmuxd.backend import Backend
from llmuxd.pool import BackendGone, Pool

from .engine import a_raw_server, read_request
from .test_line import GET, OK, answer, gone

SAID = OK + b"Content-Length: 2\r\n\r\n{}"


class Server:
    """Answers each request as it is told, and counts connections and those that ended."""

    def __init__(self, *said: bytes):
        self.said = said
        self.opened = 0
        self.ended = asyncio.Event()
        self.asked = asyncio.Event()
        self.say = asyncio.Queue[bytes]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            for said in self.said:
                await read_request(reader)
                self.asked.set()
                writer.write(said)
                await writer.drain()
            while unasked := await self.say.get():
                writer.write(unasked)
                await writer.drain()
                await reader.read()
        finally:
            self.ended.set()


async def with_server(server: Server, do: Callable[[Pool], Awaitable[None]]) -> None:
    async with a_raw_server(server.serve) as port:
        pool = Pool(port)
        await do(pool)
        pool.close()
        await gone(pool)


async def test_connection_is_used_again() -> None:
    server = Server(SAID, SAID, SAID)

    async def do(pool: Pool) -> None:
        for _ in range(3):
            assert await answer(pool) == (200, b"{}")

    await with_server(server, do)
    assert server.opened == 1


async def test_requests_at_once_have_connections_of_their_own() -> None:
    server = Server(SAID, SAID)

    async def do(pool: Pool) -> None:
        assert await answer(pool) == (200, b"{}")
        async with await pool.ask(GET) as one, await pool.ask(GET) as other:
            assert await one.whole() == await other.whole() == b"{}"

    await with_server(server, do)
    assert server.opened == 2


@pytest.mark.parametrize(
    "said",
    [
        OK + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        # Another answer that nobody asked for.
        SAID + SAID,
    ],
)
async def test_connection_that_is_not_clean_is_not_used_again(said: bytes) -> None:
    server = Server(said, SAID)

    async def do(pool: Pool) -> None:
        for _ in range(2):
            assert await answer(pool) == (200, b"{}")
            assert not pool._idle
            await gone(pool)

    await with_server(server, do)
    assert server.opened == 2


async def test_answer_that_was_not_read_to_its_end_ends_the_connection() -> None:
    server = Server(OK + b"Content-Length: 100\r\n\r\nhalf")

    async def do(pool: Pool) -> None:
        async with await pool.ask(GET) as reply:
            assert await reply.body.readany() == b"half"
        assert not pool._idle
        await gone(pool)

    await with_server(server, do)


async def test_server_that_speaks_unasked_is_not_asked_again() -> None:
    server = Server(SAID)

    async def do(pool: Pool) -> None:
        assert await answer(pool) == (200, b"{}")
        server.say.put_nowait(SAID.replace(b"{}", b"[]"))
        await gone(pool)
        assert await answer(pool) == (200, b"{}")

    await with_server(server, do)
    assert server.opened == 2


async def test_half_an_answer_that_nobody_asked_for_ends_the_connection() -> None:
    server = Server(SAID)

    async def do(pool: Pool) -> None:
        async with await pool.ask(GET) as reply:
            assert await reply.whole() == b"{}"
            server.say.put_nowait(b"HTTP/1.1 200 O")
            await gone(pool)
        assert not pool._idle

    await with_server(server, do)


async def test_server_that_speaks_before_it_is_asked_is_not_heard() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SAID)
        await writer.drain()
        await reader.read()

    async with a_raw_server(serve) as port:
        pool = Pool(port)
        line = await pool._connect()
        await gone(pool)
        assert not line.is_connected()


async def test_connection_that_the_server_closed_is_not_used() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(SAID)

    async with a_raw_server(serve) as port:
        pool = Pool(port)
        for _ in range(2):
            assert await answer(pool) == (200, b"{}")
            await gone(pool)


async def test_fresh_connection_is_opened_where_one_is_wanted() -> None:
    server = Server(SAID, SAID)

    async def do(pool: Pool) -> None:
        assert await answer(pool) == (200, b"{}")
        async with await pool.ask(GET, fresh=True) as reply:
            assert await reply.whole() == b"{}"

    await with_server(server, do)
    assert server.opened == 2


async def test_idle_connections_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_of_lines, "KEEPALIVE", 0.05)
    server = Server(SAID)

    async def do(pool: Pool) -> None:
        async with await pool.ask(GET), await pool.ask(GET):
            pass
        assert len(pool._lines) == 2
        await gone(pool)
        assert pool._sweep is None and not pool._idle

    await with_server(server, do)


async def test_connection_that_rested_too_long_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(SAID, SAID)

    async def do(pool: Pool) -> None:
        assert await answer(pool) == (200, b"{}")
        # As if the loop had been too busy to close it.
        monkeypatch.setattr(pool_of_lines, "KEEPALIVE", 0.0)
        assert await answer(pool) == (200, b"{}")

    await with_server(server, do)
    assert server.opened == 2


async def test_nobody_listens() -> None:
    async with a_raw_server(lambda reader, writer: asyncio.sleep(0)) as port:
        pass
    with pytest.raises(BackendGone) as error:
        await Pool(port).ask(GET)
    assert error.value.refused


async def test_our_own_shortage_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    with pytest.raises(BackendGone, match="Too many open files") as error:
        await Pool(1).ask(GET)
    assert not error.value.refused


async def test_server_that_takes_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_of_lines, "CONNECT_TIMEOUT", 0.02)

    async def connect(*args: object, **kwargs: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    with pytest.raises(ConnectionError, match="took no connection"):
        await Pool(1).ask(GET)


@pytest.mark.parametrize(
    "said",
    [b"", OK + b"Content-Length: 9\r\n\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n", OK],
)
async def test_closing_cuts_what_runs(said: bytes) -> None:
    server = Server(said)
    errors: list[Exception] = []

    async def ask(pool: Pool) -> None:
        try:
            await answer(pool)
        except (aiohttp.ClientError, OSError) as error:
            errors.append(error)

    async def do(pool: Pool) -> None:
        task = asyncio.create_task(ask(pool))
        await server.asked.wait()
        await asyncio.sleep(0.01)
        pool.close()
        await task
        await gone(pool)

    await with_server(server, do)
    assert len(errors) == 1


async def test_pool_that_closes_while_it_connects_leaves_nothing_open() -> None:
    server = Server(SAID)

    async def do(pool: Pool) -> None:
        task = asyncio.create_task(pool.ask(GET))
        await asyncio.sleep(0)
        pool.close()
        with pytest.raises(BackendGone):
            await task
        await gone(pool)

    await with_server(server, do)
    assert not server.asked.is_set()


async def test_reply_that_outlives_its_pool_opens_nothing_again() -> None:
    server = Server(SAID)

    async def do(pool: Pool) -> None:
        async with await pool.ask(GET) as reply:
            assert await reply.whole() == b"{}"
            pool.close()
        assert not pool._idle and pool._sweep is None

    await with_server(server, do)


async def test_closed_backend_has_no_pool() -> None:
    backend = Backend(1)
    assert backend.pool and backend.session
    await backend.close()
    with pytest.raises(BackendGone):
        _ = backend.pool
    with pytest.raises(BackendGone):
        _ = backend.session
