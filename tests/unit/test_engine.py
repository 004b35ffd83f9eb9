# SPDX-License-Identifier: MIT
import asyncio
import json

import pytest
from aiohttp import web

from llmuxd.config import Engine, ModelConfig
from llmuxd.model import engine
from llmuxd.model.server import WrongAnswer

from .engine import an_engine

TEXT = {"choices": [{"text": " dog"}]}
MODELS = {"data": [{"id": "facebook/opt-125m"}]}


async def canary(status: int, body: object, models: object = MODELS) -> tuple[str, list[str]]:
    """The canary of a server that answers so, and the bodies that it saw."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response(models)
        if isinstance(body, bytes):
            return web.Response(body=body, status=status)
        return web.json_response(body, status=status)

    async with an_engine() as server:
        server.answer = answer
        said = await asyncio.to_thread(engine.canary, server.port, "Once")
        return said, [seen.body.decode() for seen in server.seen if seen.body]


async def test_the_canary_is_one_token_at_temperature_0() -> None:
    said, asked = await canary(200, TEXT)
    assert json.loads(said) == {"text": " dog"}
    [body] = asked
    told = json.loads(body)
    assert (told["model"], told["prompt"]) == ("facebook/opt-125m", "Once")
    assert (told["max_tokens"], told["temperature"]) == (1, 0)


@pytest.mark.parametrize(
    ("status", "models"), [(404, MODELS), (400, MODELS), (200, {"data": []}), (200, [1])]
)
async def test_a_server_without_completions_has_none(status: int, models: object) -> None:
    assert (await canary(status, TEXT if status != 200 else {}, models))[0] == ""


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, {}), (503, TEXT), (200, b"{"), (200, {}), (200, {"choices": []}), (200, [1])],
)
async def test_a_server_that_fails_gives_a_wrong_answer(status: int, body: object) -> None:
    with pytest.raises(WrongAnswer):
        await canary(status, body)


async def test_a_server_that_is_gone_gives_a_wrong_answer() -> None:
    async with an_engine() as server:
        await server.die()
        with pytest.raises(WrongAnswer, match="does not answer"):
            await asyncio.to_thread(engine.canary, server.port, "Once")


@pytest.mark.parametrize(
    ("kind", "wanted", "has"),
    [
        (Engine.VLLM, True, True),
        (Engine.LLAMA_SERVER, True, True),
        (Engine.GENERIC, True, False),
        (Engine.VLLM, False, False),
    ],
)
def test_who_is_asked(kind: Engine, wanted: bool, has: bool) -> None:
    assert engine.has_canary(ModelConfig("a", "i", engine=kind, canary=wanted)) is has
