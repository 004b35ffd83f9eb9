# SPDX-License-Identifier: MIT
import asyncio
import json

import pytest
from aiohttp import web

from llmuxd.config import Engine, ModelConfig, Question
from llmuxd.model.canary import agree, ask_canary, is_asked
from llmuxd.model.server import WrongAnswer

from .engine import an_engine

TEXT = {"choices": [{"text": " dog"}]}
MODELS = {"data": [{"id": "facebook/opt-125m"}]}


async def canary(
    status: int, body: object, models: object = MODELS, listed: int = 200
) -> tuple[str, list[str]]:
    """The canary of a server that answers so, and the bodies that it saw.

    `listed` is the status that its list of `models` comes with.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response(models, status=listed)
        if isinstance(body, bytes):
            return web.Response(body=body, status=status)
        return web.json_response(body, status=status)

    async with an_engine() as server:
        server.answer = answer
        said = await asyncio.to_thread(ask_canary, server.port, "Once")
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


@pytest.mark.parametrize(
    ("listed", "models"), [(500, {}), (503, MODELS), (200, {"data": ["opt"]}), (200, {"data": 1})]
)
async def test_one_that_fails_to_list_its_models_does_too(listed: int, models: object) -> None:
    with pytest.raises(WrongAnswer):
        await canary(200, TEXT, models, listed)


async def test_one_that_wants_a_key_has_none_and_it_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert (await canary(200, TEXT, {"error": "Unauthorized"}, 401))[0] == ""
    assert "it wants a key for /v1/models" in caplog.text
    caplog.clear()
    assert (await canary(404, TEXT))[0] == ""
    assert caplog.text == ""


async def test_a_server_that_is_gone_gives_a_wrong_answer() -> None:
    async with an_engine() as server:
        await server.die()
        with pytest.raises(WrongAnswer, match="does not answer"):
            await asyncio.to_thread(ask_canary, server.port, "Once")


@pytest.mark.parametrize(
    ("kind", "wanted", "has"),
    [
        (Engine.VLLM, True, True),
        (Engine.LLAMA_SERVER, True, True),
        (Engine.GENERIC, True, False),
        (Engine.VLLM, False, False),
        (Engine.GENERIC, Question("/"), True),
    ],
)
def test_who_is_asked(kind: Engine, wanted: bool | Question, has: bool) -> None:
    assert is_asked(ModelConfig("a", "i", engine=kind, canary=wanted)) is has


EMBED = Question("/v1/embeddings", '{"model": "m", "input": "x"}')
EMBEDDING = [index / 7 for index in range(1000)]


async def own(question: Question, status: int, body: object) -> tuple[str, list[tuple[str, str]]]:
    """What a server answers to the model's own question, and what it was asked."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if isinstance(body, bytes):
            return web.Response(body=body, status=status)
        return web.json_response(body, status=status)

    async with an_engine() as server:
        server.answer = answer
        said = await asyncio.to_thread(ask_canary, server.port, "Once", question)
        return said, [(seen.path, seen.body.decode()) for seen in server.seen]


async def test_a_question_of_its_own_is_asked_as_it_stands() -> None:
    said, asked = await own(EMBED, 200, {"data": [1]})
    assert asked == [(EMBED.path, EMBED.body)] and json.loads(said) == {"data": [1]}
    said, asked = await own(Question("/version"), 200, b"1.2, not JSON")
    assert asked == [("/version", "")] and json.loads(said) == "1.2, not JSON"


async def test_what_is_another_each_time_is_no_part_of_the_answer() -> None:
    first = {"id": "1", "created": 5, "data": [{"index": 0, "eval_duration": 3}], "usage": {}}
    second = {"id": "2", "created": 6, "data": [{"index": 0, "eval_duration": 4}]}
    assert (await own(EMBED, 200, first))[0] == (await own(EMBED, 200, second))[0]
    second["data"] = [{"index": 1}]
    assert (await own(EMBED, 200, first))[0] != (await own(EMBED, 200, second))[0]


async def test_of_a_long_answer_the_beginning_does() -> None:
    said, _ = await own(EMBED, 200, {"embedding": EMBEDDING, "text": "x" * 9000})
    told = json.loads(said)
    assert told == {"embedding": EMBEDDING[:64], "text": "x" * 4096}


async def test_a_question_that_is_refused_is_no_canary() -> None:
    assert (await own(EMBED, 404, {}))[0] == ""
    with pytest.raises(WrongAnswer, match="its canary with status 500"):
        await own(EMBED, 500, {})


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ('{"a": [0.5, 0]}', '{"a": [0.5001, 1e-9]}', True),
        ('{"a": [0.5]}', '{"a": [0.6]}', False),
        ('{"a": [0.5]}', '{"a": [0.5, 0.5]}', False),
        ('{"a": 1}', '{"a": 1.0000001}', True),
        ('{"a": 1}', '{"a": 2}', False),
        ('{"a": true}', '{"a": 1.0}', False),
        ('{"a": "x"}', '{"a": "y"}', False),
        ('{"a": 1}', '{"b": 1}', False),
        ('{"a": 1}', "[1]", False),
        ('{"a": 1}', "", False),
    ],
)
def test_the_last_digits_alone_may_differ(before: str, now: str, same: bool) -> None:
    assert agree(before, now) is same
    assert agree(before, before)
