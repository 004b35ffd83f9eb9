# SPDX-License-Identifier: MIT
import asyncio
import contextlib
import errno
import gzip
import io
import json
import socket
import struct
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web

from llmuxd.policy import Gpu
from llmuxd.pool import BackendGone, Pool
from llmuxd.proxy import answer as answer_of_engine
from llmuxd.proxy.usage import Tail
from llmuxd.state import State
from llmuxd.switcher import pauses

from .engine import a_raw_server, an_engine, read_request
from .fake_units import a_config
from .house import ASK, CHAT, A, B, House, told


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "COOL_DOWN", (0.02, 60.0))
    monkeypatch.setattr(pauses, "CONNECT_AGAIN", 0.03)


# Routing


async def test_request_goes_to_its_model_as_it_is(house: House) -> None:
    body = b'{ "model":"org/a",  "x": 1.10, "x": "\\u00e9" }'
    assert await house.post(body, CHAT + "?a=1&b") == (
        200,
        {"id": "x", "object": "chat.completion"},
    )
    (seen,) = house.engine.seen
    assert (seen.method, seen.path, seen.body) == ("POST", CHAT + "?a=1&b", body)
    assert house.stage.units.log == ["start org/a"]


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/audio/speech", "/v1/x%2Fy"]
)
async def test_every_route_of_the_api_is_passed(house: House, path: str) -> None:
    await house.post(path=path)
    assert house.engine.seen[0].path == path


async def test_alias_becomes_the_name_and_the_rest_stays(house: House) -> None:
    await house.post({"model": "first", "n": 12345678901234567890, "s": "é", "f": None})
    assert house.engine.seen[0].json == {
        "model": "org/a", "n": 12345678901234567890, "s": "é", "f": None,
    }  # fmt: skip


async def test_two_models_take_turns(house: House) -> None:
    for name in ("org/a", "b", "org/a"):
        assert (await house.post({"model": name}))[0] == 200
    assert [seen.json["model"] for seen in house.engine.seen] == ["org/a", "b", "org/a"]
    assert house.stage.units.log == [
        "start org/a", "stop org/a", "start b", "stop b", "start org/a",
    ]  # fmt: skip


async def test_models_are_listed_with_aliases_and_states(house: House) -> None:
    await house.post()
    status, body = await house.get("/v1/models")
    assert status == 200 and isinstance(body, dict) and body["object"] == "list"
    found = [(entry["id"], entry["root"], entry["state"]) for entry in body["data"]]
    assert found == [
        ("org/a", "org/a", "serving"),
        ("b", "b", "cold"),
        ("first", "org/a", "serving"),
    ]


async def test_one_model_by_name_and_by_alias(house: House) -> None:
    status, body = await house.get("/v1/models/org/a")
    assert isinstance(body, dict) and (status, body["id"], body["object"]) == (
        200,
        "org/a",
        "model",
    )
    status, body = await house.get("/v1/models/first")
    assert isinstance(body, dict) and (status, body["id"], body["root"]) == (200, "first", "org/a")
    status, body = await house.get("/v1/models/org%2Fa")
    assert status == 200
    assert told(await house.get("/v1/models/zzz"))[0] == 404


async def test_health(house: House) -> None:
    assert await house.get("/health") == (200, {"status": "ok"})
    assert house.stage.units.log == []


# Users' mistakes


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"model": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"model": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'"org/a"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "names no model"),
        (b'{"model": ""}', "names no model"),
        (b'{"model": null}', "names no model"),
        (b'{"model": ["org/a"]}', "names no model"),
    ],
)
async def test_body_that_cannot_be_understood(house: House, body: bytes, words: str) -> None:
    status, message, kind, _ = told(await house.post(body))
    assert (status, kind) == (400, "invalid_request_error")
    assert words in message
    assert house.stage.units.log == []


async def test_unknown_model_is_told_with_the_nearest(house: House) -> None:
    status, message, kind, code = told(await house.post({"model": "org/b"}))
    assert (status, kind, code) == (404, "invalid_request_error", "model_not_found")
    assert "did you mean 'org/a'?" in message
    assert house.stage.units.log == []


async def test_model_name_without_end_is_told_briefly_and_soon(house: House) -> None:
    house.reconfigure(max_body=2 << 20)
    status, message, _, _ = told(await house.post({"model": "org/a" * 200_000}))
    assert status == 404 and len(message) < 400


async def test_model_name_that_is_no_text_at_all(house: House) -> None:
    assert told(await house.post(b'{"model": "\\ud800"}'))[0] == 404


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/chat", "/metrics/x", "/v1/"])
async def test_unknown_route_is_json_too(house: House, path: str) -> None:
    status, message, kind, _ = told(await house.post(path=path))
    assert (status, kind) == (404, "invalid_request_error")
    assert path in message


async def test_wrong_method_is_json_too(house: House) -> None:
    assert told(await house.get(CHAT))[0] == 405


async def test_body_over_the_limit_is_refused(house: House) -> None:
    house.stage.switcher.reload(a_config(A, B, max_body=4096))
    fits = json.dumps(ASK).encode()
    fits += b" " * (4096 - len(fits))
    assert (await house.post(fits))[0] == 200
    status, message, _, _ = told(await house.post(fits + b" "))
    assert status == 413 and "4096" in message
    assert len(house.engine.seen) == 1


async def test_large_body_passes_without_a_warning(house: House) -> None:
    house.stage.switcher.reload(a_config(A, B, max_body=8 << 20))
    body = json.dumps(ASK).encode() + b" " * (2 << 20)
    async with house.client.post(house.url + CHAT, data=io.BytesIO(body)) as response:
        assert response.status == 200
    assert house.engine.seen[0].body == body


async def test_body_over_the_limit_without_a_length_is_refused(house: House) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 65536

    async with house.client.post(house.url + CHAT, data=chunks()) as response:
        assert response.status == 413


async def test_small_file_that_unpacks_to_a_large_one_is_refused(house: House) -> None:
    bomb = gzip.compress(b" " * (64 << 20))
    headers = {"Content-Encoding": "gzip"}
    async with house.client.post(house.url + CHAT, data=bomb, headers=headers) as response:
        assert response.status in (400, 413)
        assert "error" in await response.json()


async def test_limit_follows_a_reload(house: House) -> None:
    house.stage.switcher.reload(a_config(A, B, max_body=1024))
    assert told(await house.post(ASK | {"pad": "x" * 2000}))[0] == 413


LONG = ASK | {"pad": " " * 3_000_000}
PLAIN = json.dumps(LONG).encode()


@pytest.mark.parametrize(
    ("packing", "packed"),
    [
        ("gzip", gzip.compress(PLAIN)),
        ("X-GZIP", gzip.compress(PLAIN[:99]) + gzip.compress(PLAIN[99:])),
        ("deflate", zlib.compress(PLAIN)),
        ("identity", PLAIN),
    ],
)
async def test_compressed_request_reaches_the_engine_readable(
    house: House, packing: str, packed: bytes
) -> None:
    house.reconfigure(max_body=len(PLAIN))
    headers = {"Content-Encoding": packing}
    data = io.BytesIO(packed)
    async with house.client.post(house.url + CHAT, data=data, headers=headers) as response:
        assert response.status == 200
    (seen,) = house.engine.seen
    assert "Content-Encoding" not in seen.headers
    assert json.loads(seen.body) == LONG


# Headers


async def test_headers_pass_except_those_of_the_connection(house: House) -> None:
    async def answer(request: web.Request) -> web.Response:
        headers = {"X-Engine": "1", "Keep-Alive": "timeout=5", "Connection": "X-Private",
                   "X-Private": "1", "Set-Cookie": "a=b"}  # fmt: skip
        return web.Response(status=201, reason="Made", text="{}", headers=headers)

    house.engine.answer = answer
    body = json.dumps(ASK).encode()
    answered = await house.raw(
        f"POST {CHAT} HTTP/1.1\nHost: example.org\nContent-Length: {len(body)}\n"
        "Authorization: Bearer k\n"
        "Connection: close, X-One\nConnection: x-two\nX-One: 1\nX-Two: 2\nTE: trailers\n"
        "Upgrade: h2c\nProxy-Authorization: secret\nX-Kept: 3\nContent-Type: application/json\n",
        body,
    )
    got = house.engine.seen[0].headers
    assert (got["Authorization"], got["X-Kept"]) == ("Bearer k", "3")
    assert got["Content-Type"] == "application/json"
    assert got["Host"] == f"127.0.0.1:{house.engine.port}"
    for name in ("X-One", "X-Two", "TE", "Upgrade", "Proxy-Authorization", "Connection"):
        assert name not in got
    head = answered.partition(b"\r\n\r\n")[0].decode()
    assert head.startswith("HTTP/1.1 201 Made\r\n")
    assert "X-Engine: 1" in head and "Set-Cookie: a=b" in head
    assert "X-Private" not in head and "timeout=5" not in head


async def test_answer_of_known_length_keeps_it(house: House) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 70_000)

    house.engine.answer = answer
    async with house.client.post(house.url + CHAT, json=ASK) as response:
        assert response.headers["Content-Length"] == "70000"
        assert "Transfer-Encoding" not in response.headers
        assert await response.read() == b"x" * 70_000


async def test_compressed_answer_stays_compressed(house: House) -> None:
    packed = gzip.compress(b'{"a": 1}')

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    house.engine.answer = answer
    async with house.client.post(house.url + CHAT, json=ASK) as response:
        assert (response.headers["Content-Encoding"], await response.read()) == ("gzip", packed)


@pytest.mark.parametrize("status", [204, 302, 400, 404, 429, 500, 503])
async def test_engine_own_status_is_passed(house: House, status: int) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(
            status=status, headers={"Location": "http://127.0.0.1:1/", "Retry-After": "7"}
        )

    house.engine.answer = answer
    async with house.client.post(house.url + CHAT, json=ASK, allow_redirects=False) as response:
        assert response.status == status
        assert response.headers["Retry-After"] == "7"
    assert len(house.engine.seen) == 1


async def test_cookies_of_one_client_do_not_go_to_the_next(house: House) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="{}", headers={"Set-Cookie": "who=me"})

    house.engine.answer = answer
    await house.post()
    house.client.cookie_jar.clear()
    await house.post()
    assert "Cookie" not in house.engine.seen[1].headers


# Streams


async def test_stream_passes_each_chunk_as_it_comes(house: House) -> None:
    send = asyncio.Queue[bytes]()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while chunk := await send.get():
            await response.write(chunk)
        return response

    house.engine.answer = answer
    send.put_nowait(b"data: 0\n\n")
    async with house.client.post(house.url + CHAT, json=ASK) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        for number in range(1, 4):
            # The next is sent only when the last has arrived: a buffer would wait for ever.
            assert await response.content.readany() == f"data: {number - 1}\n\n".encode()
            send.put_nowait(f"data: {number}\n\n".encode())
        send.put_nowait(b"")
        assert await response.read() == b"data: 3\n\n"
    await house.idle()


async def test_headers_come_before_the_first_chunk(house: House) -> None:
    go_on = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await go_on.wait()
        return response

    house.engine.answer = answer
    async with house.client.post(house.url + CHAT, json=ASK) as response:
        assert response.status == 200
        go_on.set()
        assert await response.read() == b""


# Clients that leave


async def test_client_that_leaves_a_stream_frees_its_place(house: House) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await asyncio.Event().wait()
        return response

    house.engine.answer = answer
    response = await house.client.post(house.url + CHAT, json=ASK)
    assert await response.content.readany() == b"first"
    assert house.in_flight == 1
    response.close()
    await house.engine.gone.wait()
    await house.idle()


async def test_client_that_leaves_before_the_answer_frees_its_place(house: House) -> None:
    asked = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    house.engine.answer = answer
    task = asyncio.create_task(house.post())
    await asked.wait()
    task.cancel()
    await house.engine.gone.wait()
    await house.idle()


async def test_client_that_leaves_the_queue_leaves_it(house: House) -> None:
    gate = house.stage.units.hold("start", "org/a")
    task = asyncio.create_task(house.post())
    await gate.reached.wait()
    assert house.stage.switcher.queue_length() == 1
    task.cancel()
    await house.stage.until(lambda: house.stage.switcher.queue_length() == 0)
    gate.open()
    await house.stage.until_state("org/a", State.SERVING)
    await house.stage.until_idle()
    assert house.engine.seen == [] and house.in_flight == 0


# Engines that fail


async def test_engine_that_dies_before_the_answer_is_a_502(house: House) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    house.engine.answer = answer
    status, message, kind, code = told(await house.post())
    assert (status, kind, code) == (502, "server_error", "backend_lost")
    assert "went away before it answered" in message
    assert house.in_flight == 0


async def test_engine_that_speaks_no_http_is_a_502(house: House) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"hello\r\n\r\n")
        await writer.drain()

    async with a_raw_server(serve) as port:
        house.stage.units.ports["org/a"] = port
        assert told(await house.post())[0] == 502


async def test_engine_that_dies_in_mid_stream_breaks_the_stream(house: House) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        assert request.transport is not None
        request.transport.close()
        return response

    house.engine.answer = answer
    body = json.dumps(ASK).encode()
    answered = await _until_closed(house, body)
    assert answered.startswith(b"HTTP/1.1 200 OK")
    assert answered.count(b"HTTP/1.1") == 1
    assert b"data: 1" in answered and not answered.endswith(b"0\r\n\r\n")
    await house.idle()


async def test_engine_that_dies_in_mid_answer_of_known_length(house: House) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        await writer.drain()

    async with a_raw_server(serve) as port:
        house.stage.units.ports["org/a"] = port
        assert told(await house.post())[0] == 502
    await house.idle()


async def test_engine_that_dies_in_mid_answer_of_great_length(house: House) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhalf")
        await writer.drain()

    async with a_raw_server(serve) as port:
        house.stage.units.ports["org/a"] = port
        with pytest.raises(aiohttp.ClientError):
            await house.post()
    await house.idle()


async def _until_closed(house: House, body: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    writer.write(body)
    answered = bytearray()
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65536):
            answered += chunk
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return bytes(answered)


async def test_engine_that_is_gone_is_started_again_for_the_request(house: House) -> None:
    async with an_engine() as first:
        house.stage.units.ports["org/a"] = first.port
        assert (await house.post())[0] == 200
        house.stage.units.ports["org/a"] = house.engine.port
        await first.die()
    task = asyncio.create_task(house.post())
    await house.stage.until(lambda: house.stage.switcher.model("org/a").backend is None)
    house.stage.units.die("org/a")
    assert (await task)[0] == 200
    assert house.stage.units.log == ["start org/a", "start org/a"]


async def test_our_own_shortage_does_not_cut_the_streams_of_others(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await go_on.wait()
        await response.write(b"last")
        return response

    house.engine.answer = answer
    async with house.client.post(house.url + CHAT, json=ASK) as response:
        assert await response.content.readany() == b"first"
        shortage = OSError(errno.EMFILE, "Too many open files")

        async def refuse(pool: Pool) -> None:
            raise BackendGone("it cannot be reached") from shortage

        with monkeypatch.context() as patch:
            patch.setattr(Pool, "_connect", refuse)
            assert told(await house.post())[0] == 502
        go_on.set()
        assert await response.read() == b"last"


async def test_idle_connection_that_the_engine_closes_is_tried_again_once(house: House) -> None:
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        # The second request on this connection is met by its end.
        await read_request(reader)

    async with a_raw_server(serve) as port:
        house.stage.units.ports["org/a"] = port
        assert await house.post() == (200, {})
        assert await house.post() == (200, {})
    assert len(requests) == 2


async def test_idle_connection_that_is_reset_is_tried_again_once(house: House) -> None:
    """An engine closed it before the request came, and the kernel answers the bytes."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        await reader.read(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with a_raw_server(serve) as port:
        house.stage.units.ports["org/a"] = port
        assert await house.post() == (200, {})
        assert await house.post() == (200, {})
    assert len(requests) == 2


@pytest.mark.parametrize("late", [False, True])
async def test_answer_that_nobody_asked_for_is_not_the_next_ones(house: House, late: bool) -> None:
    said = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}'
    poison = said.replace(b"1}", b"2}")
    reached = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(said if late else said + poison)
            if late:
                await reached.wait()
                reached.clear()
                writer.write(poison)
            await writer.drain()

    async with a_raw_server(serve) as port:
        house.stage.units.ports["org/a"] = port
        for _ in range(3):
            assert await house.post() == (200, {"a": 1})
            reached.set()
            await asyncio.sleep(0.02)


async def test_client_that_reads_nothing_is_let_go(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is held up meanwhile, and llmuxd's memory does not grow."""
    monkeypatch.setattr(answer_of_engine, "STALLED", 0.3)
    sent = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 10_000)
            sent += 10_000

    house.engine.answer = answer
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port, limit=1024)
    text = json.dumps(ASK).encode()
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n".encode())
    writer.write(text)
    await house.engine.gone.wait()
    await house.idle()
    # What the kernel holds of three connections, and ours.
    assert sent < 30_000_000
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_client_that_reads_slowly_is_served(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_of_engine, "STALLED", 0.5)
    size = 8_000_000

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=io.BytesIO(b"x" * size))

    house.engine.answer = answer
    async with house.client.post(house.url + CHAT, json=ASK) as response:
        got = 0
        while piece := await response.content.read(500_000):
            got += len(piece)
            await asyncio.sleep(0.05)
    assert got == size


async def test_mistake_of_ours_in_mid_answer_gives_no_second_status(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake(tail: Tail, chunk: bytes) -> None:
        raise LookupError("a bug")

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        return response

    house.engine.answer = answer
    monkeypatch.setattr(Tail, "add", mistake)
    text = json.dumps(ASK).encode()
    answered = await _until_closed(house, text)
    assert answered.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answered.count(b"HTTP/1.") == 1
    await house.idle()


async def test_engine_that_always_hangs_up_is_asked_twice_and_no_oftener(house: House) -> None:
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))

    async with a_raw_server(serve) as port:
        house.stage.units.ports["org/a"] = port
        assert told(await house.post())[0] == 502
    assert len(requests) == 2


# Models that fail


async def test_model_that_keeps_failing_is_a_503_with_a_time(house: House) -> None:
    house.stage.units.break_verb("start", "org/a")
    status, message, kind, code = told(await house.post())
    assert (status, kind, code) == (503, "server_error", "model_failed")
    assert "it ran out of memory" in message
    async with house.client.post(house.url + CHAT, json=ASK) as response:
        assert response.status == 503
        assert 50 <= int(response.headers["Retry-After"]) <= 60
    assert house.stage.units.log == ["start org/a"] * 2


async def test_engine_that_never_answers_is_a_504(house: House) -> None:
    hurried = replace(A, request_timeout=0.3)
    house.stage.reload(hurried, B)

    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    house.engine.answer = never
    status, message, kind, code = told(await house.post())
    assert (status, kind, code) == (504, "timeout_error", "request_timeout")
    assert "request_timeout in llmux.yaml" in message
    await house.engine.gone.wait()
    await house.idle()


async def test_answer_that_began_in_time_is_not_cut(house: House) -> None:
    house.stage.reload(replace(A, request_timeout=0.3), B)

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(0.5)
        await response.write(b'{"late": true}')
        return response

    house.engine.answer = slow
    assert await house.post() == (200, {"late": True})


async def test_full_queue_is_a_429_with_a_time(house: House) -> None:
    house.stage.reload(replace(A, queue_limit=1), B)
    gate = house.stage.units.hold("start", "org/a")
    first = asyncio.create_task(house.post())
    await gate.reached.wait()
    async with house.client.post(house.url + CHAT, data=json.dumps(ASK)) as response:
        assert int(response.headers["Retry-After"]) >= 1
        answer = told((response.status, await response.json()))
    assert (answer[0], answer[2], answer[3]) == (429, "rate_limit_error", "queue_full")
    gate.open()
    assert (await first)[0] == 200


async def test_model_that_never_fits_is_a_507(house: House) -> None:
    house.stage.reload(replace(A, vram=30 << 30), B)
    house.stage.switcher.measure({0: Gpu(24 << 30)})
    status, message, _, code = told(await house.post())
    assert (status, code) == (507, "no_room") and "6.0 GiB more than it can have" in message


async def test_a_bug_tells_the_client_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> State:
        raise RuntimeError("secret /path")

    monkeypatch.setattr(house.stage.switcher, "state", broken)
    status, message, kind, _ = told(await house.get("/v1/models"))
    assert (status, kind) == (500, "server_error")
    assert "secret" not in message and "journalctl -u llmuxd" in message
    assert "secret /path" in caplog.text


# The end


async def test_graceful_close_lets_a_running_stream_end(house: House) -> None:
    go_on = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await go_on.wait()
        await response.write(b"last")
        return response

    house.engine.answer = answer
    async with house.client.post(house.url + CHAT, json=ASK) as response:
        assert await response.content.readany() == b"first"
        closing = asyncio.create_task(house.proxy.close())
        await _refuses(house.port)
        await asyncio.wait([closing], timeout=0.1)
        assert not closing.done() and not house.engine.gone.is_set()
        go_on.set()
        assert await response.read() == b"last"
    await closing
    assert house.in_flight == 0


async def _refuses(port: int) -> None:
    """Wait until nobody listens on `port`."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue
        writer.close()
        await asyncio.sleep(0)


async def test_close_does_not_wait_for_idle_clients(house: House) -> None:
    assert (await house.post())[0] == 200
    async with asyncio.timeout(5):
        await house.proxy.close()
    with pytest.raises(aiohttp.ClientError):
        await house.post()


async def test_queued_request_is_served_in_the_closing(house: House) -> None:
    gate = house.stage.units.hold("start", "org/a")
    task = asyncio.create_task(house.post())
    await gate.reached.wait()
    closing = asyncio.create_task(house.proxy.close())
    await _refuses(house.port)
    gate.open()
    assert (await task)[0] == 200
    await closing
