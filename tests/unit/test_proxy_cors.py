# SPDX-License-Identifier: MIT
"""Pages of other origins in browsers."""

import pytest
from aiohttp import web
from multidict import CIMultiDictProxy

from llmuxd.keys import Key

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
