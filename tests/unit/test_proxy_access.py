# SPDX-License-Identifier: MIT
"""API keys: who gets in, to which models, and how often."""

import asyncio
import hashlib
import json

import aiohttp
import pytest
from aiohttp import web

from llmuxd.keys import Key

from .house import ASK, CHAT, House, told

SECRET = "sk-alice-3f8a"


def a_key(secret: str = SECRET, **more: object) -> Key:
    digest = hashlib.sha256(secret.encode()).digest()
    return Key(**{"name": secret[3:8], "sha256": digest} | more)  # type: ignore[arg-type]


async def ask(
    house: House, path: str = CHAT, body: object = ASK, **headers: str
) -> tuple[int, object]:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    async with house.client.post(house.url + path, json=body, headers=headers) as response:
        return response.status, await response.json()


BEARER = {"Authorization": f"Bearer {SECRET}"}


async def test_nobody_gets_in_without_a_key(house: House) -> None:
    house.proxy.take_keys([a_key()])
    for headers in (
        {},
        {"Authorization": "Bearer sk-x"},
        {"Authorization": SECRET},
        {"x-api-key": ""},
    ):
        status, _, kind, code = told(await ask(house, **headers))
        assert (status, kind, code) == (401, "invalid_request_error", "invalid_api_key")
    for path in ("/v1/models", "/v1/models/b", "/metrics", "/upstream/b/docs"):
        assert (await house.get(path))[0] == 401
    assert (await house.get("/health"))[0] == 200
    assert house.stage.units.log == []


async def test_empty_file_lets_nobody_in_and_none_lets_everybody(house: House) -> None:
    house.proxy.take_keys([])
    assert (await ask(house, **BEARER))[0] == 401
    house.proxy.take_keys(None)
    assert (await ask(house))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [BEARER, {"authorization": f"bearer {SECRET}"}, {"x_api_key": SECRET}, {"api_key": SECRET}],
)
async def test_key_is_found_where_clients_put_it_and_goes_no_further(
    house: House, headers: dict[str, str]
) -> None:
    house.proxy.take_keys([a_key("sk-other"), a_key()])
    assert (await ask(house, **headers))[0] == 200
    assert SECRET not in str(house.engine.seen[0].headers)


async def test_challenge_names_the_scheme(house: House) -> None:
    house.proxy.take_keys([])
    async with house.client.post(house.url + CHAT, json=ASK) as response:
        assert response.headers["WWW-Authenticate"] == "Bearer"
    _, answer = await ask(house, "/v1/messages")
    assert isinstance(answer, dict) and answer["error"]["type"] == "authentication_error"


async def test_key_opens_its_models_only(house: House) -> None:
    house.proxy.take_keys([a_key(models=frozenset({"b"}))])
    assert told(await ask(house, **BEARER))[::3] == (403, "model_not_allowed")
    assert told(await ask(house, body={"model": "first"}, **BEARER))[0] == 403
    assert (await ask(house, body={"model": "b"}, **BEARER))[0] == 200
    async with house.client.get(house.url + "/v1/models", headers=BEARER) as response:
        assert [entry["id"] for entry in (await response.json())["data"]] == ["b"]
    for path in ("/v1/models/org/a", "/upstream/org/a/docs", "/v1/responses/x?model=first"):
        async with house.client.get(house.url + path, headers=BEARER) as response:
            assert response.status == 403, path
    assert house.stage.units.log == ["start b"]


async def test_websocket_needs_its_key_too(house: House) -> None:
    house.proxy.take_keys([a_key()])
    url = house.url + "/v1/realtime?model=b"
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await house.client.ws_connect(url)
    assert caught.value.status == 401
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await house.client.ws_connect(url, protocols=[f"openai-insecure-api-key.{SECRET}"])
    assert caught.value.status == 502  # it was let in, and this engine has none
    # Elsewhere a protocol is none, and would go on to the engine.
    assert (await ask(house, Sec_WebSocket_Protocol=f"openai-insecure-api-key.{SECRET}"))[0] == 401


async def test_requests_a_minute_are_counted(house: House) -> None:
    house.proxy.take_keys([a_key(requests_per_minute=2), a_key("sk-other")])
    assert [(await ask(house, **BEARER))[0] for _ in range(2)] == [200, 200]
    async with house.client.post(house.url + CHAT, json=ASK, headers=BEARER) as response:
        assert 25 <= int(response.headers["Retry-After"]) <= 30
        answer = told((response.status, await response.json()))
    assert (answer[0], answer[2], answer[3]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert (await ask(house, Authorization="Bearer sk-other"))[0] == 200
    # A reload forgets nothing.
    house.proxy.take_keys([a_key(requests_per_minute=2)])
    assert (await ask(house, **BEARER))[0] == 429


async def test_requests_at_once_are_counted(house: House) -> None:
    house.proxy.take_keys([a_key(concurrency=1)])
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.set()
        await go_on.wait()
        return web.json_response({})

    house.engine.answer = answer
    first = asyncio.create_task(ask(house, **BEARER))
    await asked.wait()
    assert told(await ask(house, **BEARER))[0] == 429
    go_on.set()
    assert (await first)[0] == 200
    assert (await ask(house, **BEARER))[0] == 200


async def test_client_that_leaves_gives_its_turn_back(house: House) -> None:
    house.proxy.take_keys([a_key(concurrency=1)])
    gate = house.stage.units.hold("start", "org/a")
    task = asyncio.create_task(ask(house, **BEARER))
    await gate.reached.wait()
    task.cancel()
    await house.stage.until(lambda: house.stage.switcher.queue_length() == 0)
    gate.open()
    assert (await ask(house, **BEARER))[0] == 200


async def test_key_raises_what_it_waits_for(house: House) -> None:
    house.proxy.take_keys([a_key(priority=7)])
    gate = house.stage.units.hold("start", "org/a")
    task = asyncio.create_task(ask(house, **BEARER))
    await gate.reached.wait()
    assert house.stage.switcher.model("org/a").urgency == 7
    gate.open()
    await task


async def test_no_key_is_ever_logged_or_told(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    house.proxy.take_keys([a_key(requests_per_minute=1)])
    answers = [
        json.dumps(await ask(house, **BEARER)),
        json.dumps(await ask(house, **BEARER)),
        json.dumps(await ask(house, Authorization="Bearer sk-wrong-77")),
        json.dumps(await ask(house, CHAT + "?api_key=" + SECRET, body={"model": "zzz"})),
    ]
    house.proxy.take_keys(None)
    async with house.client.get(house.url + "/metrics") as response:
        answers.append(await response.text())
    for text in (*answers, caplog.text):
        assert SECRET not in text and "sk-wrong-77" not in text
        assert hashlib.sha256(SECRET.encode()).hexdigest() not in text


async def test_key_for_some_models_learns_of_no_other(house: House) -> None:
    limited, whole = {"api-key": "sk-limited"}, {"api-key": SECRET}
    house.proxy.take_keys([a_key("sk-limited", models=frozenset({"b"}), metrics=False), a_key()])
    for path in ("/v1/models/org/aa", "/v1/responses/x?model=org/aa", "/upstream/org/aa/x"):
        for headers, shown in ((limited, False), (whole, True)):
            async with house.client.get(house.url + path, headers=headers) as response:
                assert response.status == 404
                assert ("'org/a'" in await response.text()) is shown, path
    for headers, status in ((limited, 403), (whole, 200)):
        async with house.client.get(house.url + "/metrics", headers=headers) as response:
            assert response.status == status


async def test_health_complains_to_those_who_may_know_and_is_red_for_all(house: House) -> None:
    house.proxy.take_keys([a_key("sk-limited", metrics=False), a_key()])
    house.stage.units.attached = False
    for headers, words in (
        ({}, False), ({"api-key": "sk-limited"}, False), ({"api-key": SECRET}, True),
    ):  # fmt: skip
        async with house.client.get(house.url + "/health", headers=headers) as response:
            assert response.status == 503
            assert ("problems" in await response.json()) is words
