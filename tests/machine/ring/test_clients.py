# SPDX-License-Identifier: MIT
"""The clients that people use: OpenAI's and Anthropic's SDKs, litellm, curl, each unchanged."""

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmuxd import names

from . import guest
from .guest import QWEN, configure, eventually, sh
from .test_engines import GEMMA, LLAMA, VLLM, VOLUMES, _has, _llama, _vllm

CLIENTS = Path("/srv/models/clients")
KEYS = Path("/etc/llmux/keys.yaml")
FAKE, BROKEN = "org/fake", "org/broken"
HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
URL = "http://127.0.0.1:4000"


@pytest.fixture(scope="module", autouse=True)
def _sdks() -> Iterator[None]:
    if not CLIENTS.is_dir():
        pytest.skip("this machine was built without the part 'clients'")
    sys.path.insert(0, str(CLIENTS))
    yield
    sys.path.remove(str(CLIENTS))
    KEYS.unlink(missing_ok=True)


def openai(**more: Any) -> Any:
    """A client that tries no request again, so that each error is seen."""
    import openai

    return openai.OpenAI(**{"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0} | more)


def two_models() -> None:
    """One that answers and one that never comes up, each on a GPU of its own."""
    configure(
        {
            FAKE: {"args": ["--model", FAKE], "aliases": ["fake"]},
            BROKEN: {"args": ["--bogus"], "gpus": [1], "checkpoint": False},
        }
    )


def with_keys(keys: dict[str, Any]) -> None:
    """As an administrator does it: the file, the setting, a reload."""
    for name, key in keys.items():
        key["sha256"] = hashlib.sha256(f"sk-{name}".encode()).hexdigest()
    KEYS.write_text(json.dumps(keys), encoding="utf-8")
    KEYS.chmod(0o600)
    settings = json.loads(guest.CONFIG.read_text(encoding="utf-8"))
    guest.CONFIG.write_text(json.dumps(settings | {"keys": str(KEYS)}), encoding="utf-8")
    sh("systemctl", "reload", "llmuxd")
    eventually(lambda: guest.post("/v1/chat/completions", {}).status == 401, "the keys hold")


def in_flight(model: str) -> int:
    path = names.object_path(model)
    return int(
        sh("busctl", "get-property", "org.llmux", path, "org.llmux.Model", "InFlight").split()[1]
    )


def test_openai_answers_streams_and_lists() -> None:
    two_models()
    client = openai()
    answer = client.chat.completions.create(model="fake", messages=HELLO, max_tokens=5)
    text = answer.choices[0].message.content
    assert answer.model == FAKE and len(text.split()) == 5
    assert answer.usage.completion_tokens == 5
    stream = client.chat.completions.create(
        model=FAKE, messages=HELLO, max_tokens=5, stream=True,
        extra_headers={"X-LLMux-Waiting": "comments"},
    )  # fmt: skip
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    raw = client.completions.with_raw_response.create(model=FAKE, prompt="x", max_tokens=1)
    assert raw.headers["X-LLMux-Model"] == FAKE
    assert {model.id for model in client.models.list()} == {FAKE, BROKEN, "fake"}
    assert client.models.retrieve("fake").id == "fake"


def test_openai_async_many_at_once_and_one_that_leaves() -> None:
    two_models()
    import openai as sdk

    async def run() -> None:
        async with sdk.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none") as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model=FAKE, messages=HELLO, max_tokens=3)
                    for _ in range(20)
                )
            )
            assert len({answer.choices[0].message.content for answer in answers}) == 1
            stream = await client.chat.completions.create(
                model=FAKE, messages=HELLO, max_tokens=10_000, stream=True,
                extra_body={"fake": {"seconds_per_token": 0.02}},
            )  # fmt: skip
            async for _ in stream:
                break
            assert in_flight(FAKE) == 1
            await stream.close()

    asyncio.run(run())
    eventually(lambda: in_flight(FAKE) == 0, "the client that left frees its place", 5.0)


def test_openai_error_classes() -> None:
    two_models()
    import openai as sdk

    client = openai()
    with pytest.raises(sdk.NotFoundError) as missing:
        client.chat.completions.create(model="org/fak", messages=HELLO)
    assert missing.value.code == "model_not_found" and "did you mean" in missing.value.message
    with pytest.raises(sdk.BadRequestError):
        client.post("/chat/completions", body=[], cast_to=object)
    with pytest.raises(sdk.InternalServerError) as broken:
        client.chat.completions.create(model=BROKEN, messages=HELLO)
    assert broken.value.status_code == 503 and broken.value.code == "model_failed"
    assert int(broken.value.response.headers["Retry-After"]) >= 1
    with pytest.raises(sdk.APITimeoutError):
        openai(timeout=0.5).chat.completions.create(
            model=FAKE, messages=HELLO, max_tokens=1000,
            extra_body={"fake": {"seconds_per_token": 0.1}},
        )  # fmt: skip
    with_keys({"limited": {"models": [FAKE], "concurrency": 1}})
    with pytest.raises(sdk.AuthenticationError):
        client.models.list()
    limited = openai(api_key="sk-limited")
    with pytest.raises(sdk.PermissionDeniedError):
        limited.chat.completions.create(model=BROKEN, messages=HELLO)
    stream = limited.chat.completions.create(
        model=FAKE, messages=HELLO, max_tokens=15, stream=True,
        extra_body={"fake": {"seconds_per_token": 0.1}},
    )  # fmt: skip
    next(iter(stream))
    with pytest.raises(sdk.RateLimitError) as limit:
        limited.chat.completions.create(model=FAKE, messages=HELLO)
    assert limit.value.response.headers["Retry-After"] == "1"
    # With retries, as the SDK has them, it waits as it is told and is served.
    patient = openai(api_key="sk-limited", max_retries=4)
    begin = time.monotonic()
    patient.chat.completions.create(model=FAKE, messages=HELLO, max_tokens=1)
    assert time.monotonic() - begin >= 0.5
    journal = sh("journalctl", "--no-pager", "--output=cat", "--unit=llmuxd.service")
    assert "sk-limited" not in journal


def test_structured_output_and_anthropic_on_a_real_engine() -> None:
    if not _has(LLAMA):
        pytest.skip("llama-server's image is not built")
    import anthropic
    from pydantic import BaseModel

    class Place(BaseModel):  # type: ignore[misc]
        city: str
        population: int

    configure({GEMMA: _llama(GEMMA) | {"aliases": ["gemma"]}}, {"volumes": VOLUMES})
    place = openai().chat.completions.parse(
        model="gemma", response_format=Place, max_tokens=200, temperature=0,
        messages=[{"role": "user", "content": "Paris, as JSON."}],
    )  # fmt: skip
    assert isinstance(place.choices[0].message.parsed, Place)
    client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
    message = client.messages.create(model="gemma", max_tokens=8, messages=HELLO)
    assert message.type == "message" and message.usage.output_tokens > 0
    with client.messages.stream(model="gemma", max_tokens=8, messages=HELLO) as stream:
        assert "".join(stream.text_stream)
    assert client.messages.count_tokens(model="gemma", messages=HELLO).input_tokens > 0
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="gemm", max_tokens=8, messages=HELLO)
    assert missing.value.type == "not_found_error"
    page = sh("curl", "-sSf", f"{URL}/upstream/gemma/props")
    assert "chat_template" in page


def test_anthropic_retries_times_out_and_leaves() -> None:
    if not _has(LLAMA):
        pytest.skip("llama-server's image is not built")
    import anthropic

    configure({GEMMA: _llama(GEMMA)}, {"volumes": VOLUMES})
    with_keys({"limited": {"concurrency": 1}})
    asked: dict[str, Any] = {"model": GEMMA, "max_tokens": 1500, "messages": HELLO}
    url: dict[str, Any] = {"base_url": URL, "api_key": "sk-limited"}
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        anthropic.Anthropic(base_url=URL, api_key="none").messages.create(**asked)
    assert unknown.value.type == "authentication_error"

    async def run() -> None:
        client = anthropic.AsyncAnthropic(**url, max_retries=0)
        async with client, client.messages.stream(**asked) as stream:
            async for _ in stream.text_stream:
                break
            with pytest.raises(anthropic.RateLimitError):
                await client.messages.create(**asked)
        await asyncio.to_thread(eventually, lambda: in_flight(GEMMA) == 0, "its place is free", 5.0)

    asyncio.run(run())
    hasty = anthropic.Anthropic(**url, timeout=0.05, max_retries=0)
    with pytest.raises(anthropic.APITimeoutError):
        hasty.messages.create(**asked)
    eventually(lambda: in_flight(GEMMA) == 0, "the client that gave up frees its place", 5.0)


def test_litellm() -> None:
    two_models()
    script = Path(__file__).with_name("asks_litellm.py")
    path = f"PYTHONPATH={CLIENTS}"
    said = sh("env", path, sys.executable, "-P", str(script), "fake", timeout=300)
    seen = json.loads(said.splitlines()[-1])
    assert len(seen["text"].split()) == seen["tokens"] == 5
    assert seen["streamed"] == seen["async"] == seen["text"]
    assert seen["missing"] == 404


def test_tools_and_structured_output_on_vllm() -> None:
    """With random weights: a grammar makes them call the tool, whatever they would say."""
    if not _has(VLLM):
        pytest.skip("vLLM's CPU build could not be had: its torch wheel is missing")
    called = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    vllm = _vllm("/srv/models/qwen2.5-3b-instruct", QWEN)
    configure(
        {QWEN: vllm | {"args": [*vllm["args"], *called], "aliases": ["qwen"]}},
        {"volumes": VOLUMES},
    )
    city = {"type": "string", "enum": ["Paris", "Rome"]}
    place: dict[str, Any] = {
        "type": "object", "properties": {"city": city}, "required": ["city"],
        "additionalProperties": False,
    }  # fmt: skip
    function = {"name": "get_weather", "description": "The weather.", "parameters": place}
    asked: dict[str, Any] = {
        "model": "qwen", "messages": HELLO, "max_tokens": 100, "temperature": 0,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    }  # fmt: skip
    client = openai(timeout=600)
    (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls
    assert call.function.name == "get_weather" and call.id
    pieces = [
        piece.function
        for chunk in client.chat.completions.create(**asked, stream=True)
        for piece in chunk.choices[0].delta.tool_calls or []
    ]
    assert [piece.name for piece in pieces if piece.name] == ["get_weather"]
    assert "".join(piece.arguments or "" for piece in pieces) == call.function.arguments
    schema = {"name": "place", "strict": True, "schema": place}
    told = client.chat.completions.create(
        model="qwen", messages=HELLO, max_tokens=400, temperature=0,
        response_format={"type": "json_schema", "json_schema": schema},
    ).choices[0]  # fmt: skip
    # It may go on with white space for as long as it is let.
    assert told.message.content.startswith("{") and '"city"' in told.message.content


def test_curl() -> None:
    two_models()
    body = json.dumps({"model": FAKE, "messages": HELLO, "max_tokens": 3, "stream": True})
    argv = ("curl", "-sS", "--fail-with-body", f"{URL}/v1/chat/completions")
    streamed = sh(*argv, "-N", "--json", body)
    assert streamed.endswith("data: [DONE]")
    # Above 1 MB curl waits for 100 Continue.
    large = Path("/tmp/large.json")
    large.write_text(json.dumps({"pad": "x" * 2_000_000, "model": FAKE, "messages": HELLO}))
    told = sh(*argv, "-v", "-H", "Expect: 100-continue", "--json", f"@{large}")
    large.unlink()
    assert json.loads(told)["model"] == FAKE
    assert json.loads(sh(*argv, "--http1.0", "--json", body.replace("true", "false")))
    form = sh("curl", "-sS", "-F", "file=@/etc/hostname", "-F", "model=fake",
              f"{URL}/v1/audio/transcriptions")  # fmt: skip
    # Its own words: the fake engine takes JSON only, and the form reached it.
    assert json.loads(form)["error"]["type"] == "fake"
