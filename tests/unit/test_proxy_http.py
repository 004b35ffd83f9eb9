# SPDX-License-Identifier: MIT
"""HTTP itself: versions, connections, Expect, trailers, clients that are slow."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from llmuxd.proxy import body, connection
from llmuxd.short import Short

from .engine import until
from .house import ASK, CHAT, House

TEXT = json.dumps(ASK).encode()

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def test_expect_100_continue_is_answered_before_the_body(house: House) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    writer.write(f"{head}Content-Length: {len(TEXT)}\r\nConnection: close\r\n\r\n".encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(TEXT)
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
    writer.close()
    assert "Expect" not in house.engine.seen[0].headers


@pytest.mark.parametrize(
    ("path", "length", "expect", "status"),
    [
        (CHAT, 1 << 30, "100-continue", b"413"),
        ("/nowhere", 10, "100-continue", b"404"),
        (CHAT, 10, "miracles", b"417"),
    ],
)
async def test_body_that_would_be_refused_is_not_asked_for(
    house: House, path: str, length: int, expect: str, status: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: {expect}\r\n"
    writer.write(f"{head}Content-Length: {length}\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n")).split(b" ")[1] == status
    writer.close()


async def test_http_1_0_client_gets_a_stream_that_ends_with_its_connection(house: House) -> None:
    answered = await house.raw(f"POST {CHAT} HTTP/1.0\nContent-Length: {len(TEXT)}\n", TEXT)
    head, _, answer = answered.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK")
    assert b"chunked" not in head.lower()
    assert json.loads(answer)["object"] == "chat.completion"


async def test_connection_serves_one_request_after_the_other(house: House) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    for _ in range(3):
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(TEXT)}\r\n\r\n".encode()
            + TEXT
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        (length,) = [
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"Content-Length" in line
        ]
        await reader.readexactly(length)
    writer.close()
    assert len(house.engine.seen) == 3


async def test_pipelined_requests_are_answered_in_their_order(house: House) -> None:
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    first = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(TEXT)}\r\n\r\n".encode() + TEXT
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(first + last)
    answered = await reader.read()
    assert answered.index(b"chat.completion") < answered.index(b'"status"')
    writer.close()


async def test_trailers_of_a_request_are_taken(house: House) -> None:
    chunked = b"%x\r\n%b\r\n0\r\nX-Checksum: 1\r\n\r\n" % (len(TEXT), TEXT)
    answered = await house.raw(
        f"POST {CHAT} HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nTrailer: X-Checksum\n"
        "Connection: close\n",
        chunked,
    )
    assert answered.startswith(b"HTTP/1.1 200 OK")
    assert house.engine.seen[0].body == TEXT


async def test_head_of_a_read(house: House) -> None:
    answered = await house.raw("HEAD /health HTTP/1.1\nHost: x\nConnection: close\n")
    head, _, answer = answered.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK") and answer == b""


async def test_client_that_sends_no_head_is_let_go(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(b"GET /health HTTP/1.1\r\nX-Slow")
    assert await reader.read() == b""
    writer.close()


async def test_hundreds_that_drip_their_heads_are_in_nobodys_way(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slowloris: a byte now and then is no sign of life."""
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 1.0)
    slow = [await asyncio.open_connection("127.0.0.1", house.port) for _ in range(300)]

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    return await asyncio.wait_for(reader.read(), 0.1)
        return b""

    dripping = [asyncio.create_task(drip(*each)) for each in slow]
    while not all(task.done() for task in dripping):
        assert (await house.post())[0] == 200
    assert {await task for task in dripping} == {b""}
    for _, writer in slow:
        writer.close()


async def test_client_that_stops_in_its_body_is_told(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "READ_TIMEOUT", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{{".encode())
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_request_that_takes_long_is_not_let_go(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 0.05)
    gate = house.stage.units.hold("start", "org/a")
    task = asyncio.create_task(house.post())
    await gate.reached.wait()
    await asyncio.wait([task], timeout=0.15)
    gate.open()
    assert (await task)[0] == 200


async def test_what_is_no_http_is_told_in_json(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    answered = await house.raw("POST /v1/x HTTP/1.1\nContent-Length: one\n")
    head, _, answer = answered.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == b"400"
    assert "no valid HTTP request" in json.loads(answer)["error"]["message"]
    assert "Traceback" not in caplog.text


async def test_engine_hears_no_header_that_the_client_did_not_send(house: House) -> None:
    head = f"POST {CHAT} HTTP/1.1\nHost: x\nConnection: close\nContent-Length: {len(TEXT)}\n"
    await house.raw(head, TEXT)
    # A compressed answer, say, is for those only who said that they can read one.
    assert set(house.engine.seen[0].headers) == {"Host", "Content-Length"}


@pytest.mark.skipif(aiohttp.__version__.startswith("3.9."), reason="its parser closes on it")
async def test_wish_for_http_2_is_passed_over(house: House) -> None:
    """Java's client asks for it with each first request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    body = json.dumps(ASK).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n\r\n"
    ).encode()
    for _ in range(2):
        writer.write(head)
        await writer.drain()
        writer.write(body)
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
    assert not {"Upgrade", "HTTP2-Settings"} & set(house.engine.seen[-1].headers)
    writer.close()
    await writer.wait_closed()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="aiohttp's tasks are eager there")
async def test_request_has_no_task_of_its_own(house: House) -> None:
    tasks: list[int] = []

    async def answer(request: web.Request) -> web.Response:
        tasks.append(len(asyncio.all_tasks()))
        return web.json_response({})

    house.engine.answer = answer
    before = len(asyncio.all_tasks())
    await house.post()
    # One for each connection, the engine's and ours; the engine's server makes another one.
    assert tasks[0] - before == 3


async def test_request_has_one_where_aiohttp_calls_its_work_otherwise(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_HANDLING", None)
    assert (await house.post())[0] == 200
    assert (await house.post())[0] == 200


@contextlib.asynccontextmanager
async def served(handler: connection.Handler) -> AsyncIterator[Streams]:
    """A connection to a server that answers so."""
    runner = web.ServerRunner(connection.Server(handler))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    try:
        yield reader, writer
    finally:
        writer.close()
        await runner.cleanup()


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_only_queues_of_a_body_that_has_come_are_short() -> None:
    """A client may send a byte a chunk: to take the first of many moves all others."""
    seen: list[bool] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        content = request.content
        seen.append(isinstance(content._buffer, Short))
        assert await body.whole(request, 100) == b"ab"
        seen.append(isinstance(content._buffer, Short))
        return web.Response()

    async with served(answer) as (reader, writer):
        writer.write(CHUNKED + b"1\r\na\r\n")
        await until(lambda: bool(seen))
        writer.write(b"1\r\nb\r\n0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).split(b" ")[1] == b"200"
    assert seen == [False, True]


async def test_request_after_one_of_many_small_chunks_is_read() -> None:
    """aiohttp's parser is told to pause after the last of them, and does so in the next request."""
    many = 0

    async def answer(request: web.BaseRequest) -> web.Response:
        nonlocal many
        # Before 3.13 it counts bytes alone.
        many = many or getattr(request.content, "_high_water_chunks", 1) + 1
        content = request.content
        await until(lambda: content.is_eof() or content.total_bytes >= many)
        return web.Response(body=b"%d." % len(await body.whole(request, 1 << 20)))

    async with served(answer) as (reader, writer):
        writer.write(CHUNKED)
        await until(lambda: bool(many))
        writer.write(b"1\r\na\r\n" * many + b"0\r\n\r\n")
        await reader.readuntil(b"%d." % many)
        many = 2
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab")
        async with asyncio.timeout(5):
            await reader.readuntil(b"2.")
