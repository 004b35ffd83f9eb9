# SPDX-License-Identifier: MIT
"""HTTP itself: versions, connections, Expect, trailers, clients that are slow."""

import asyncio
import json
import sys

import aiohttp
import pytest
from aiohttp import web

from llmuxd.proxy import body, connection

from .house import ASK, CHAT, House

TEXT = json.dumps(ASK).encode()


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
