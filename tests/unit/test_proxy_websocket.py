# SPDX-License-Identifier: MIT
"""WebSockets through the proxy."""

import asyncio
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web

from llmuxd.config import Upstream
from llmuxd.proxy import websocket

from .engine import a_raw_server
from .house import A, B, House, told

REALTIME = "/v1/realtime?model=first"


async def echo(request: web.Request) -> web.StreamResponse:
    """Send back what comes, and say what was asked for."""
    socket = web.WebSocketResponse(protocols=["realtime"])
    await socket.prepare(request)
    await socket.send_str(f"{request.path_qs} {request.headers.get('X-Kept')}")
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            if message.data == "bye":
                await socket.close(code=4001)
            else:
                await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)
    return socket


async def test_messages_pass_both_ways(house: House) -> None:
    house.engine.answer = echo
    async with house.client.ws_connect(
        house.url + REALTIME, protocols=["realtime", "other"], headers={"X-Kept": "1"}
    ) as socket:
        assert socket.protocol == "realtime"
        assert await socket.receive_str() == "/v1/realtime?model=org%2Fa 1"
        await socket.send_str("é" * 100_000)
        assert await socket.receive_str() == "é" * 100_000
        await socket.send_bytes(b"\0\xff")
        assert await socket.receive_bytes() == b"\0\xff"
        assert house.in_flight == 1
    await house.idle()
    assert house.stage.units.log == ["start org/a"]


async def test_engine_hears_its_own_name(house: House) -> None:
    house.engine.answer = echo
    house.stage.reload(replace(A, served_name="its own & name"), B)
    async with house.client.ws_connect(house.url + "/v1/realtime?x=1&model=org/a&y") as socket:
        await socket.receive_str()
    assert house.engine.seen[0].path == "/v1/realtime?x=1&model=its%20own%20%26%20name&y"


async def test_engine_that_redirects_is_not_followed(house: House) -> None:
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())

    async with a_raw_server(serve) as port:

        async def elsewhere(request: web.Request) -> web.StreamResponse:
            return web.Response(status=302, headers={"Location": f"http://127.0.0.1:{port}/"})

        house.engine.answer = elsewhere
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await house.client.ws_connect(house.url + REALTIME)
    assert (caught.value.status, asked) == (502, [])
    await house.idle()


async def test_engine_ends_it_with_its_own_code(house: House) -> None:
    house.engine.answer = echo
    async with house.client.ws_connect(house.url + REALTIME) as socket:
        await socket.receive_str()
        await socket.send_str("bye")
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 4001
    await house.idle()


async def test_client_that_vanishes_frees_its_place(house: House) -> None:
    house.engine.answer = echo
    socket = await house.client.ws_connect(house.url + REALTIME)
    await socket.receive_str()
    assert house.in_flight == 1
    socket._response.close()
    await house.idle()


async def test_client_that_takes_nothing_is_let_go(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "STALLED", 0.2)
    monkeypatch.setattr(websocket, "FAREWELL", 0.2)

    async def flood(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        while True:
            await socket.send_bytes(b"x" * 100_000)

    house.engine.answer = flood
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port, limit=1024)
    writer.write(HANDSHAKE.encode() + b"\r\n")
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 101 ")
    await house.engine.gone.wait()
    await house.idle()
    writer.close()


HANDSHAKE = (
    f"GET {REALTIME} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize(
    "head",
    [
        HANDSHAKE.replace("Connection: Upgrade\r\n", ""),
        HANDSHAKE.replace("Version: 13", "Version: 12"),
        HANDSHAKE.replace("dGhlIHNhbXBsZSBub25jZQ==", "x"),
        HANDSHAKE.replace("GET", "POST"),
    ],
)
async def test_handshake_that_is_none_is_the_clients_mistake(house: House, head: str) -> None:
    house.engine.answer = echo
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(head.encode() + b"\r\n")
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400 ")
    writer.close()
    assert house.stage.units.log == []


async def test_key_in_a_protocol_is_not_logged(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    house.engine.answer = echo
    offered = ["openai-insecure-api-key.sk-secret"]
    async with house.client.ws_connect(house.url + REALTIME, protocols=offered) as socket:
        await socket.receive_str()
        assert socket.protocol is None
    assert "sk-secret" not in caplog.text


async def test_key_in_a_protocol_goes_no_further(house: House) -> None:
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Sec-WebSocket-Protocol"))
        return await echo(request)

    house.engine.answer = answer
    offered = ["realtime", "openai-insecure-api-key.sk-secret"]
    async with house.client.ws_connect(house.url + REALTIME, protocols=offered) as socket:
        await socket.receive_str()
    assert seen == ["realtime"]


async def test_engine_without_websockets(house: House) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await house.client.ws_connect(house.url + REALTIME)
    assert caught.value.status == 502
    assert house.in_flight == 0


async def test_plain_request_and_unknown_model_are_told(house: House) -> None:
    assert told(await house.get(REALTIME))[0] == 400
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await house.client.ws_connect(house.url + "/v1/realtime?model=zzz")
    assert caught.value.status == 404


async def test_websocket_of_the_engines_own_pages(house: House) -> None:
    house.engine.answer = echo
    url = house.url + "/upstream/org/a/ws?x=1"
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await house.client.ws_connect(url)
    house.reconfigure(upstream=Upstream.ALL)
    async with house.client.ws_connect(url) as socket:
        assert (await socket.receive_str()).startswith("/ws?x=1 ")


async def test_waits_for_its_model(house: House) -> None:
    house.engine.answer = echo
    gate = house.stage.units.hold("start", "org/a")
    opening = asyncio.create_task(house.client.ws_connect(house.url + REALTIME))
    await gate.reached.wait()
    gate.open()
    socket = await opening
    assert await socket.receive_str() == "/v1/realtime?model=org%2Fa None"
    await socket.close()
