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


# The small Gemma has none of its own for tools. llama-server makes a grammar of it, by which the
# model has to call a tool where it must, but may say anything before; it does as it did before.
TEMPLATE = """\
{%- for tool in tools or [] %}{{ tool | tojson }}
{% endfor %}
{%- for message in messages %}<{{ message.role }}>
{%- if message.tool_calls %}[TOOL_CALLS][
{%- for call in message.tool_calls -%}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
{{- ", " if not loop.last }}
{%- endfor %}]
{%- else %}{{ message.content or "" }}
{%- endif %}
{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""
CITY = {"type": "string", "enum": ["Paris", "Rome", "Oslo"]}
PLACE: dict[str, Any] = {
    "type": "object", "properties": {"city": CITY}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip


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


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_openai_reaches_every_route() -> None:
    """The fake engine has few of them, and says so in its own words."""
    two_models()
    import openai as sdk

    client = openai()
    sound, picture = ("a.wav", b"RIFF" * 50_000), ("a.png", b"\x89PNG" * 50_000)
    asked: list[tuple[Any, dict[str, Any], str]] = [
        (client.moderations.create, {"input": "x"}, "no such path: /v1/moderations"),
        (
            client.audio.speech.create,
            {"input": "x", "voice": "y"},
            "no such path: /v1/audio/speech",
        ),
        (client.images.generate, {"prompt": "x"}, "no such path: /v1/images/generations"),
        (client.responses.create, {"input": "x"}, "no such path: /v1/responses"),
        # Of a form it understands nothing.
        (client.audio.transcriptions.create, {"file": sound}, ""),
        (client.audio.translations.create, {"file": sound}, ""),
        (client.images.edit, {"image": picture, "prompt": "x"}, ""),
        (client.images.create_variation, {"image": picture}, ""),
    ]
    for create, more, words in asked:
        with pytest.raises(sdk.APIStatusError) as told:
            create(model="fake", **more)
        assert told.value.type == "fake" and words in told.value.message, (create, told.value)
    with pytest.raises(sdk.NotFoundError, match="no such path: /v1/responses/r_1"):
        client.responses.retrieve("r_1", extra_query={"model": "fake"})


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


def test_tools_through_llama_server() -> None:
    """Both SDKs' own forms of them: the tools, the calls before, what came of them, the stream."""
    if not _has(LLAMA):
        pytest.skip("llama-server's image is not built")
    import anthropic

    llama = _llama(GEMMA)
    templated = [*llama["args"], "--jinja", "--chat-template", TEMPLATE]
    configure({GEMMA: llama | {"args": templated, "aliases": ["gemma"]}}, {"volumes": VOLUMES})
    told = ["Rome", "Oslo", "Paris", "Rome", "Oslo"]
    history: list[Any] = []
    for number, city in enumerate(told):
        call = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        calls = [{"id": f"call_{number}", "type": "function", "function": call}]
        history += [
            {"role": "user", "content": f"The weather in {city}?"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": f"call_{number}", "content": "Sunny."},
        ]
    question = {"role": "user", "content": "The weather in Paris?"}
    function = {"name": "get_weather", "description": "The weather.", "parameters": PLACE}
    asked: dict[str, Any] = {
        "model": "gemma", "messages": [*history, question], "max_tokens": 100, "temperature": 0,
        "tools": [{"type": "function", "function": function}], "tool_choice": "required",
    }  # fmt: skip
    client = openai(timeout=600)
    choice = client.chat.completions.create(**asked).choices[0]
    (made,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and made.id
    assert (made.function.name, json.loads(made.function.arguments)) == (
        "get_weather", {"city": "Paris"},
    )  # fmt: skip
    pieces = [
        piece.function
        for chunk in client.chat.completions.create(**asked, stream=True)
        for piece in chunk.choices[0].delta.tool_calls or []
    ]
    assert [piece.name for piece in pieces if piece.name] == ["get_weather"]
    assert "".join(piece.arguments or "" for piece in pieces) == made.function.arguments

    before: list[Any] = []
    for number, city in enumerate(told):
        use = {"type": "tool_use", "id": f"toolu_{number}", "name": "get_weather",
               "input": {"city": city}}  # fmt: skip
        result = {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": "Sunny."}
        before += [
            {"role": "user", "content": f"The weather in {city}?"},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
        ]
    tool = {"name": "get_weather", "description": "The weather.", "input_schema": PLACE}
    wanted: dict[str, Any] = {
        "model": "gemma", "messages": [*before, question], "max_tokens": 100,
        "tools": [tool], "tool_choice": {"type": "any"}, "extra_body": {"temperature": 0},
    }  # fmt: skip
    with anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0) as claude:
        message = claude.messages.create(**wanted)
        with claude.messages.stream(**wanted) as stream:
            streamed = stream.get_final_message()
    for each in (message, streamed):
        assert each.stop_reason == "tool_use"
        (used,) = [block for block in each.content if block.type == "tool_use"]
        assert (used.name, used.input) == ("get_weather", {"city": "Paris"})


def _refused() -> float:
    """How many requests were one too many, as the key 'limited' is told."""
    page = sh("curl", "-sSf", "-H", "x-api-key: sk-limited", f"{URL}/metrics")
    counts = [line for line in page.splitlines() if "requests_total{" in line and '"429"' in line]
    return sum(float(line.split()[-1]) for line in counts)


def test_anthropic_retries_times_out_and_leaves() -> None:
    if not _has(LLAMA):
        pytest.skip("llama-server's image is not built")
    import anthropic

    configure({GEMMA: _llama(GEMMA)}, {"volumes": VOLUMES})
    with_keys({"limited": {"concurrency": 1}})
    asked: dict[str, Any] = {"model": GEMMA, "max_tokens": 1500, "messages": HELLO}
    url: dict[str, Any] = {"base_url": URL, "api_key": "sk-limited"}
    with (
        anthropic.Anthropic(base_url=URL, api_key="none") as stranger,
        pytest.raises(anthropic.AuthenticationError) as unknown,
    ):
        stranger.messages.create(**asked)
    assert unknown.value.type == "authentication_error"

    async def run() -> None:
        client = anthropic.AsyncAnthropic(**url, max_retries=0)
        async with client, client.messages.stream(**asked) as stream:
            async for _ in stream.text_stream:
                break
            with pytest.raises(anthropic.RateLimitError):
                await client.messages.create(**asked)
            # With retries, as the SDK has them, it comes again as it is told, and is served.
            patient = anthropic.AsyncAnthropic(**url, max_retries=5)
            retried = asyncio.create_task(
                patient.messages.with_raw_response.create(**asked | {"max_tokens": 1})
            )
            await asyncio.to_thread(eventually, lambda: _refused() >= 2, "it was refused", 5.0)
        async with patient:
            assert (await retried).retries_taken > 0
        await asyncio.to_thread(eventually, lambda: in_flight(GEMMA) == 0, "its place is free", 5.0)

    asyncio.run(run())
    with (
        anthropic.Anthropic(**url, timeout=0.05, max_retries=0) as hasty,
        pytest.raises(anthropic.APITimeoutError),
    ):
        hasty.messages.create(**asked)
    eventually(lambda: in_flight(GEMMA) == 0, "the client that gave up frees its place", 5.0)


def test_litellm() -> None:
    two_models()
    with_keys({"all": {}, "one": {"models": [FAKE]}, "rare": {"requests_per_minute": 1}})
    script = Path(__file__).with_name("asks_litellm.py")
    path = f"PYTHONPATH={CLIENTS}"
    said = sh("env", path, sys.executable, "-P", str(script), FAKE, BROKEN, timeout=300)
    seen = json.loads(said.splitlines()[-1])
    assert len(seen["text"].split()) == seen["tokens"] == 5
    assert seen["streamed"] == seen["async"] == seen["text"]
    assert seen["errors"] == {
        "unknown model": "NotFoundError",
        "unknown key": "AuthenticationError",
        "not its model": "APIError",  # 403: it has no class for that
        "too often": "RateLimitError",
        "broken": "ServiceUnavailableError",
        "too slow": "Timeout",
    }


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
    function = {"name": "get_weather", "description": "The weather.", "parameters": PLACE}
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
    schema = {"name": "place", "strict": True, "schema": PLACE}
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
