# SPDX-License-Identifier: MIT
"""What engines may answer, byte by byte, and what clients get of it."""

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from llmuxd.config import Upstream
from llmuxd.proxy import answer as answer_of_engine

from .engine import a_raw_server, read_request
from .house import ASK, CHAT, House, told
from .test_proxy_form import EDGE, MODEL, TRANSCRIBE, a_form

TEXT = json.dumps(ASK).encode()
HEAD = f"POST {CHAT} HTTP/1.1\nHost: x\nContent-Length: {len(TEXT)}\n"
CLOSE = HEAD + "Connection: close\n"
OK = b"HTTP/1.1 200 OK\r\n"


class Engine:
    """Answers every request with the same bytes; closes the connection then, or not."""

    def __init__(self, said: bytes, *, close: bool = False):
        self.said = said
        self.close = close
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            self.requests.append(await read_request(reader))
            self.asked.set()
            writer.write(self.said)
            await writer.drain()
            if self.close:
                return


async def ask(house: House, engine: Engine, head: str = CLOSE, body: bytes = TEXT) -> bytes:
    """All that a client gets for these very bytes."""
    async with a_raw_server(engine.serve) as port:
        house.stage.units.ports["org/a"] = port
        return await house.raw(head, body)


def split(answered: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """First line, headers by their names in lower case, body."""
    head, _, body = answered.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = [line.partition(b": ") for line in lines]
    assert len({name.lower() for name, _, _ in headers}) == len(headers), "a header twice"
    return first, {name.lower(): value for name, _, value in headers}, body


async def test_head_passes_as_it_came(house: House) -> None:
    said = (
        OK.replace(b"OK", b"Fine so") + b"x-lower: 1\r\nX-Bytes: caf\xe9\r\nContent-Length: 2\r\n"
    )
    answered = await ask(house, Engine(said + b"\r\n{}"))
    first, headers, body = split(answered)
    assert (first, body) == (b"HTTP/1.1 200 Fine so", b"{}")
    assert b"\r\nx-lower: 1\r\n" in answered and headers[b"x-bytes"] == b"caf\xe9"
    assert headers[b"content-length"] == b"2" and headers[b"connection"] == b"close"
    assert b"server" not in headers and b"content-type" not in headers


async def test_bytes_of_a_clients_header_pass_as_they_came(house: House) -> None:
    engine = Engine(OK + b"Content-Length: 2\r\n\r\n{}")
    async with a_raw_server(engine.serve) as port:
        house.stage.units.ports["org/a"] = port
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        head = CLOSE.replace("\n", "\r\n").encode()
        writer.write(head + b"X-Bytes: caf\xe9\r\nx-LOWER: 1\r\n\r\n" + TEXT)
        assert (await reader.read()).startswith(OK)
        writer.close()
    assert b"\r\nX-Bytes: caf\xe9\r\nx-LOWER: 1\r\n" in engine.requests[0]


@pytest.mark.parametrize("said", [b"", b"date: yesterday\r\n"])
async def test_date_is_there_once(house: House, said: bytes) -> None:
    answered = await ask(house, Engine(OK + said + b"Content-Length: 0\r\n\r\n"))
    date = split(answered)[1][b"date"]
    assert date == b"yesterday" if said else date.endswith(b" GMT")


@pytest.mark.parametrize(
    ("said", "close"),
    [
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", False),
        (OK + b"\r\nhello", True),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", True),
    ],
)
async def test_answer_of_unknown_length_is_chunked_anew(
    house: House, said: bytes, close: bool
) -> None:
    first, headers, body = split(await ask(house, Engine(said, close=close)))
    assert first == b"HTTP/1.1 200 OK" and headers[b"transfer-encoding"] == b"chunked"
    assert b"content-length" not in headers and b"trailer" not in headers
    assert body == b"5\r\nhello\r\n0\r\n\r\n"


async def test_client_of_http_1_0_gets_its_end_with_the_connection(house: House) -> None:
    said = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    head = CLOSE.replace("1.1", "1.0").replace("close", "keep-alive")
    first, headers, body = split(await ask(house, Engine(said), head))
    assert (first, body) == (b"HTTP/1.0 200 OK", b"hello")
    assert headers[b"connection"] == b"close"


async def test_client_of_http_1_0_may_keep_its_connection(house: House) -> None:
    engine = Engine(OK + b"Content-Length: 2\r\n\r\n{}")
    async with a_raw_server(engine.serve) as port:
        house.stage.units.ports["org/a"] = port
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        head = CLOSE.replace("1.1", "1.0").replace("close", "keep-alive")
        for _ in range(2):
            writer.write(head.replace("\n", "\r\n").encode() + b"\r\n" + TEXT)
            answered = await reader.readuntil(b"{}")
            assert b"\r\nConnection: keep-alive\r\n" in answered
        writer.close()


@pytest.mark.parametrize(
    ("method", "status", "length", "passed"),
    [
        ("HEAD", 200, b"5", b"5"), ("GET", 304, b"5", b"5"), ("GET", 204, None, None),
        ("GET", 204, b"0", None), ("GET", 204, b"5", None), ("HEAD", 200, None, None),
    ],
)  # fmt: skip
async def test_answer_without_a_body_has_none(
    house: House, method: str, status: int, length: bytes | None, passed: bytes | None
) -> None:
    house.reconfigure(upstream=Upstream.READ)
    told = b"Content-Length: %b\r\n" % length if length else b""
    if method == "HEAD" and length is None:
        told = b"Transfer-Encoding: chunked\r\n"
    engine = Engine(b"HTTP/1.1 %d X\r\n%bETag: x\r\n\r\n" % (status, told))
    answered = await ask(house, engine, f"{method} /upstream/org/a/x HTTP/1.1\nHost: x\n"
                         "Connection: close\n", b"")  # fmt: skip
    first, headers, body = split(answered)
    assert (first, body) == (b"HTTP/1.1 %d X" % status, b"")
    assert headers.get(b"content-length") == passed and b"transfer-encoding" not in headers
    assert headers[b"etag"] == b"x"


async def test_heads_before_the_answer_are_passed_over(house: House) -> None:
    said = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\n{}"
    answered = await ask(house, Engine(said))
    assert answered.startswith(OK) and answered.endswith(b"{}") and b"Link" not in answered


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: a\rY: b\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_10.0\r\n",
    ],
)
async def test_answer_that_two_readers_would_read_differently_is_a_502(
    house: House, said: bytes
) -> None:
    first, _, body = split(await ask(house, Engine(said, close=True)))
    assert first.split(b" ")[1] == b"502"
    assert told((502, json.loads(body)))[3] == "backend_lost"


async def test_line_end_that_a_parser_let_through_is_a_502(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_of_engine, "passed", lambda headers: [(b"X", b"a\r\nY: b")])
    first, _, body = split(await ask(house, Engine(OK + b"Content-Length: 2\r\n\r\n{}")))
    assert first.split(b" ")[1] == b"502" and b"control character" in body


async def test_engine_that_hangs_up_is_not_asked_on_another_old_connection(house: House) -> None:
    """Two rest, both closed by the engine as they are used: the request is sent twice, not thrice,
    and the second time on a new one."""
    served: list[int] = []
    both = asyncio.Barrier(2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(served)
        await read_request(reader)
        served.append(number)
        if number < 2 and len(served) <= 2:
            await both.wait()
        writer.write(OK + b"Content-Length: 2\r\n\r\n{}")
        await writer.drain()
        await read_request(reader)

    async with a_raw_server(serve) as port:
        house.stage.units.ports["org/a"] = port
        await asyncio.gather(house.post(), house.post())
        assert await house.post() == (200, {})
    assert len(served) == 3


async def test_form_that_grows_too_large_on_its_way_is_told_as_such(house: House) -> None:
    house.reconfigure(max_body=200_000)
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            asked.set()

    async def chunks() -> AsyncIterator[bytes]:
        yield a_form(MODEL, end=b"") + EDGE.encode() + b'name="file"\r\n\r\n'
        await asked.wait()
        for _ in range(10):
            yield b"x" * 65536

    async with a_raw_server(serve) as port:
        house.stage.units.ports["org/a"] = port
        kind = {"Content-Type": "multipart/form-data; boundary=edge"}
        async with house.client.post(
            house.url + TRANSCRIBE, data=chunks(), headers=kind
        ) as response:
            answer = told((response.status, await response.json()))
    assert answer[0] == 413 and "200000" in answer[1]
    await house.idle()


@pytest.mark.parametrize(
    ("method", "length"), [("GET", None), ("HEAD", None), ("POST", b"0"), ("DELETE", b"0")]
)
async def test_engine_is_told_that_there_is_no_body_where_it_would_wait_for_one(
    house: House, method: str, length: bytes | None
) -> None:
    house.reconfigure(upstream=Upstream.ALL)
    engine = Engine(OK + b"Content-Length: 0\r\n\r\n")
    head = f"{method} /upstream/org/a/x?y=%20z HTTP/1.1\nHost: x\nConnection: close\n"
    assert (await ask(house, engine, head, b"")).startswith(OK)
    first, headers, _ = split(engine.requests[0])
    assert first == f"{method} /x?y=%20z HTTP/1.1".encode()
    assert headers.get(b"content-length") == length
    assert b"transfer-encoding" not in headers


async def test_short_answer_holds_no_place_for_a_client_that_does_not_take_it(
    house: House,
) -> None:
    engine = Engine(OK + b"Content-Length: 60000\r\n\r\n" + b"x" * 60_000)
    async with a_raw_server(engine.serve) as port:
        house.stage.units.ports["org/a"] = port
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port, limit=1024)
        # Some megabytes of answers, of which it reads none.
        one = HEAD.replace("\n", "\r\n").encode() + b"\r\n" + TEXT
        writer.write(one * 200)
        await engine.asked.wait()
        before = -1
        while before != len(engine.requests):
            before = len(engine.requests)
            await asyncio.sleep(0.1)
        assert before < 200 and house.in_flight == 0
        writer.transport.abort()
        await house.idle()
    del reader


async def test_engine_that_breaks_off_between_chunks_breaks_the_stream(house: House) -> None:
    said = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    async with a_raw_server(Engine(said, close=True).serve) as port:
        house.stage.units.ports["org/a"] = port
        async with house.client.post(house.url + CHAT, json=ASK) as response:
            with pytest.raises(aiohttp.ClientError):
                await response.read()
    await house.idle()
