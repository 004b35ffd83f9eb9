# SPDX-License-Identifier: MIT
"""Pages of other origins in browsers."""

import asyncio
import hashlib
import json

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDictProxy

from llmuxd.config import Upstream
from llmuxd.keys import Key
from llmuxd.state import State

from .house import ASK, CHAT, House

PAGE = "https://chat.example"
ASKS = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}
Headers = CIMultiDictProxy[str]


async def preflight(house: House, origin: str = PAGE, path: str = CHAT) -> tuple[int, Headers]:
    headers = {"Origin": origin, **ASKS}
    async with house.client.options(house.url + path, headers=headers) as response:
        return response.status, response.headers


async def post(house: House, origin: str = PAGE, model: str = "b", **more: str) -> Headers:
    headers = {"Origin": origin, **more}
    body = ASK | {"model": model}
    async with house.client.post(house.url + CHAT, json=body, headers=headers) as response:
        await response.read()
        return response.headers


def allowed(headers: Headers) -> list[str]:
    return headers.getall("Access-Control-Allow-Origin", [])


@pytest.fixture
def open_engine(house: House) -> None:
    """One that allows all, as vLLM does."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({}, headers={"Access-Control-Allow-Origin": "*"})

    house.engine.answer = answer


@pytest.mark.usefixtures("open_engine")
async def test_no_page_may_ask_unless_it_is_said(house: House) -> None:
    status, headers = await preflight(house)
    assert (status, allowed(headers)) == (405, [])
    assert allowed(await post(house)) == []


@pytest.mark.usefixtures("open_engine")
async def test_pages_of_one_origin_may_ask(house: House) -> None:
    house.reconfigure(cors_origins=(PAGE, "https://other"))
    status, headers = await preflight(house)
    assert (status, allowed(headers), headers["Vary"]) == (204, [PAGE], "Origin")
    assert headers["Access-Control-Allow-Methods"] == "POST"
    assert headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    headers = await post(house)
    assert (allowed(headers), headers["Vary"]) == ([PAGE], "Origin")
    assert "X-LLMux-Model" in headers["Access-Control-Expose-Headers"]
    # Its script is to read what went wrong.
    assert allowed(await post(house, model="none")) == [PAGE]
    status, headers = await preflight(house, "https://evil.example")
    assert (status, allowed(headers)) == (204, [])
    assert "Access-Control-Allow-Methods" not in headers
    assert allowed(await post(house, "https://evil.example")) == []
    assert allowed(await post(house, "null")) == []


@pytest.mark.usefixtures("open_engine")
async def test_all_pages_may_ask(house: House) -> None:
    house.reconfigure(cors_origins=("*",))
    status, headers = await preflight(house, path="/v1/models")
    assert (status, allowed(headers)) == (204, ["*"])
    assert allowed(await post(house)) == ["*"]


async def test_browser_that_asks_whether_it_may_has_no_key(house: House) -> None:
    house.reconfigure(cors_origins=(PAGE,))
    house.proxy.take_keys([Key("x", b"x" * 32)])
    assert (await preflight(house))[0] == 204
    assert allowed(await post(house)) == [PAGE]
    async with house.client.options(house.url + CHAT, headers={"Origin": PAGE}) as response:
        assert response.status == 405


async def test_question_that_no_answer_can_repeat(house: House) -> None:
    house.reconfigure(cors_origins=(PAGE,))
    head = f"OPTIONS {CHAT} HTTP/1.1\r\nHost: x\r\nOrigin: {PAGE}\r\n".encode()
    asked = b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: \xff\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(head + asked + b"\r\n")
    assert (await reader.readuntil(b"\r\n")).split(b" ")[1] == b"405"
    writer.close()


async def blind(house: House, origin: str, **more: str) -> int:
    """What a page sends without a question, and whose answer it may not read."""
    headers = {"Content-Type": "text/plain", "Origin": origin, **more}
    body = json.dumps(ASK | {"model": "b"})
    async with house.client.post(house.url + CHAT, data=body, headers=headers) as response:
        await response.read()
        return response.status


async def test_blind_post_of_a_foreign_page_brings_no_model_in(house: House) -> None:
    for origin in (PAGE, "null", "", f"{house.url}0"):
        assert await blind(house, origin) == 403, origin
    assert house.stage.switcher.state("b") is State.COLD
    house.reconfigure(cors_origins=("https://other",))
    assert await blind(house, PAGE) == 403
    assert await blind(house, house.url) == 200
    house.reconfigure(cors_origins=(PAGE,))
    assert await blind(house, PAGE) == 200


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "Text/Plain; charset=x"])
async def test_nor_does_a_form_of_one(house: House, kind: str) -> None:
    assert await blind(house, PAGE, **{"Content-Type": kind}) == 403


@pytest.mark.parametrize(
    "origin", [PAGE, "tauri://localhost", "http://tauri.localhost", "chrome-extension://a", "null"]
)
async def test_json_comes_from_nobody_who_did_not_ask_before(house: House, origin: str) -> None:
    """Programs that show pages say an origin too, and a proxy may tell another host."""
    assert await blind(house, origin, **{"Content-Type": "application/json"}) == 200


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403), ("same-site", "no-cors", 403),
        ("cross-site", "navigate", 200), ("same-origin", "no-cors", 200), ("none", "navigate", 200),
    ],
)  # fmt: skip
async def test_picture_in_a_foreign_page_brings_no_model_in(
    house: House, site: str, mode: str, status: int
) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
    async with house.client.get(house.url + "/upstream/b/x", headers=headers) as response:
        await response.read()
        assert response.status == status
    served = house.stage.switcher.state("b") is not State.COLD
    assert served == (status == 200)


async def test_page_that_has_a_key_was_given_it(house: House) -> None:
    house.proxy.take_keys([Key("x", hashlib.sha256(b"k").digest())])
    assert await blind(house, PAGE) == 401
    assert await blind(house, PAGE, Authorization="Bearer k") == 200


async def websocket(house: House, origin: str, **more: str) -> int:
    headers = {"Origin": origin, **more}
    url = house.url + "/v1/realtime?model=b"
    try:
        async with house.client.ws_connect(url, headers=headers):
            return 101
    except aiohttp.WSServerHandshakeError as error:
        return error.status


@pytest.fixture
def speaking_engine(house: House) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        return socket

    house.engine.answer = answer


@pytest.mark.usefixtures("speaking_engine")
async def test_websocket_is_for_pages_of_its_own_host_only(house: House) -> None:
    assert await websocket(house, house.url) == 101
    # Behind a proxy that speaks TLS.
    assert await websocket(house, "https://Llmux.example", Host="llmux.example") == 101
    for origin in (PAGE, "null", "", f"{house.url}0", f"{house.url}.evil.example"):
        assert await websocket(house, origin) == 403, origin


@pytest.mark.usefixtures("speaking_engine")
async def test_websocket_is_for_pages_that_llmux_yaml_names(house: House) -> None:
    house.reconfigure(cors_origins=(PAGE,))
    assert await websocket(house, PAGE) == 101
    assert await websocket(house, "https://evil.example") == 403
    house.reconfigure(cors_origins=("*",))
    assert await websocket(house, "https://evil.example") == 101


async def test_websocket_of_the_engines_own_pages(house: House) -> None:
    house.reconfigure(upstream=Upstream.ALL)
    url = house.url + "/upstream/b/ws"
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await house.client.ws_connect(url, headers={"Origin": PAGE})
    assert caught.value.status == 403
