# SPDX-License-Identifier: MIT
"""What clients are told of their wait."""

import asyncio
import json

import pytest
from aiohttp import web

from llmuxd.proxy import arrivals, waiting

from .house import ASK, CHAT, House

STREAM: dict[str, object] = {**ASK, "stream": True}
WANTED = {"X-LLMux-Waiting": "comments"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST", 0.02)
    monkeypatch.setattr(waiting, "INTERVAL", 0.02)


async def events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: 1\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


async def test_headers_tell_how_the_model_came(house: House) -> None:
    gate = house.stage.units.hold("start", "org/a")
    asking = asyncio.create_task(house.client.post(house.url + CHAT, json={"model": "first"}))
    await gate.reached.wait()
    # Nobody is told of a wait that is shorter.
    await asyncio.sleep(2 * arrivals._WAITED)
    gate.open()
    async with await asking as response:
        first = response.headers
    async with house.client.post(house.url + CHAT, json=ASK) as response:
        second = response.headers
    assert first["X-LLMux-Model"] == second["X-LLMux-Model"] == "org/a"
    assert first["X-LLMux-Activation"] == "cold"
    assert float(first["X-LLMux-Switch-Seconds"]) > 0
    assert float(first["X-LLMux-Queue-Seconds"]) >= 0
    assert "X-LLMux-Activation" not in second and "X-LLMux-Queue-Seconds" not in second


async def test_headers_can_be_left_out(house: House) -> None:
    house.reconfigure(response_headers=False)
    async with house.client.post(house.url + CHAT, json=ASK) as response:
        assert not any(name.lower().startswith("x-llmux") for name in response.headers)
    house.engine.answer = events
    gate = house.stage.units.hold("start", "b")
    asked = STREAM | {"model": "b"}
    async with house.client.post(house.url + CHAT, json=asked, headers=WANTED) as response:
        assert "X-LLMux-Model" not in response.headers
        gate.open()
        await response.read()


async def test_comments_come_while_the_model_does(house: House) -> None:
    house.engine.answer = events
    gate = house.stage.units.hold("start", "org/a")
    async with house.client.post(house.url + CHAT, json=STREAM, headers=WANTED) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["X-LLMux-Model"] == "org/a"
        said = await response.content.readuntil(b"\n\n")
        assert said.startswith(b": llmux: org/a is ") and b", 1 wait for it, " in said
        await response.content.readuntil(b"\n\n")
        gate.open()
        rest = await response.read()
    assert rest.endswith(b"data: 1\n\ndata: [DONE]\n\n")
    await house.idle()


@pytest.mark.parametrize(
    ("path", "begin"), [(CHAT, b"data: "), ("/v1/messages", b"event: error\n")]
)
async def test_failure_is_an_event_then(house: House, path: str, begin: bytes) -> None:
    gate = house.stage.units.hold("start", "org/a")
    house.stage.units.break_verb("start", "org/a")
    async with house.client.post(house.url + path, json=STREAM, headers=WANTED) as response:
        await response.content.readuntil(b"\n\n")
        gate.open()
        last = (await response.read()).split(b"\n\n")[-2]
    assert last.startswith(begin)
    error = json.loads(last.partition(b"data: ")[2])["error"]
    assert "could not be started" in error["message"]


async def test_engines_own_error_is_an_event_then(house: House) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "too long"}}, status=400)

    house.engine.answer = answer
    gate = house.stage.units.hold("start", "org/a")
    async with house.client.post(house.url + CHAT, json=STREAM, headers=WANTED) as response:
        await response.content.readuntil(b"\n\n")
        gate.open()
        assert (await response.read()).endswith(b'data: {"error": {"message": "too long"}}\n\n')


@pytest.mark.parametrize(
    ("body", "headers", "everybody"),
    [
        (ASK, WANTED, True),
        (STREAM, {}, False),
        (STREAM, {"X-LLMux-Waiting": "none"}, True),
        ({**ASK, "stream": "true"}, WANTED, False),
    ],
)
async def test_who_did_not_ask_sees_the_status_of_the_engine(
    house: House, body: dict[str, object], headers: dict[str, str], everybody: bool
) -> None:
    house.reconfigure(waiting_comments=everybody)

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=418)

    house.engine.answer = answer
    gate = house.stage.units.hold("start", "org/a")

    async def ask() -> int:
        async with house.client.post(house.url + CHAT, json=body, headers=headers) as response:
            return response.status

    task = asyncio.create_task(ask())
    await gate.reached.wait()
    await asyncio.wait([task], timeout=0.1)
    gate.open()
    assert await task == 418


async def test_sound_is_no_place_for_words(house: House) -> None:
    house.reconfigure(waiting_comments=True)

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"\0RIFF", content_type="audio/wav")

    house.engine.answer = answer
    gate = house.stage.units.hold("start", "org/a")

    async def ask() -> bytes:
        url = house.url + "/v1/audio/speech"
        async with house.client.post(url, json=STREAM, headers=WANTED) as response:
            return await response.read()

    task = asyncio.create_task(ask())
    await gate.reached.wait()
    await asyncio.wait([task], timeout=0.1)
    gate.open()
    assert await task == b"\0RIFF"


async def test_model_that_serves_is_not_announced(house: House) -> None:
    house.reconfigure(waiting_comments=True)
    house.engine.answer = events
    async with house.client.post(house.url + CHAT, json={"model": "org/a"}) as response:
        await response.read()
    async with house.client.post(house.url + CHAT, json=STREAM) as response:
        assert await response.read() == b"data: 1\n\ndata: [DONE]\n\n"


async def test_client_that_leaves_while_it_hears_leaves_the_queue(house: House) -> None:
    gate = house.stage.units.hold("start", "org/a")
    response = await house.client.post(house.url + CHAT, json=STREAM, headers=WANTED)
    await response.content.readuntil(b"\n\n")
    response.close()
    await house.stage.until(lambda: house.stage.switcher.queue_length() == 0)
    gate.open()
    await house.stage.until_idle()
