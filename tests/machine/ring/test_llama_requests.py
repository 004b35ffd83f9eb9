# SPDX-License-Identifier: MIT
"""What llama.cpp tries its own server with, asked directly and through llmuxd: the same status, the
same kind of body, the same keys and types in it.

REQUESTS follows the subjects of its tools/server/tests/unit: completions, chat, structured output,
log probabilities, tokens, templates, Anthropic's and OpenAI's ways, and what the server refuses.
"""

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from llmuxd import names

from .guest import complete, configure, sh
from .test_engines import GEMMA, LLAMA, VOLUMES, _has, _llama

CHAT, COMPLETION = "/v1/chat/completions", "/completion"
USER = [{"role": "user", "content": "Say hello."}]
PLACE = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 5}}}
SHORT: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
CHATS: dict[str, Any] = {"messages": USER, **SHORT}

REQUESTS: list[tuple[str, Any]] = [
    (CHAT, CHATS),
    (CHAT, CHATS | {"messages": [{"role": "system", "content": "Be brief."}, *USER]}),
    (CHAT, CHATS | {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}),
    (CHAT, CHATS | {"stream": True}),
    (CHAT, CHATS | {"stream": True, "stream_options": {"include_usage": True}}),
    (CHAT, CHATS | {"logprobs": True, "top_logprobs": 3}),
    (CHAT, CHATS | {"stop": ["o"], "seed": 42}),
    (CHAT, CHATS | {"n": 2}),
    (CHAT, CHATS | {"grammar": 'root ::= "a"+'}),
    (CHAT, CHATS | {"max_tokens": 40, "response_format": {"type": "json_object"}}),
    (CHAT, CHATS | {"max_tokens": 40,
                    "response_format": {"type": "json_schema", "json_schema": {"schema": PLACE}}}),
    (CHAT, CHATS | {"response_format": {"type": "sound"}}),
    (CHAT, CHATS | {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}),
    (CHAT, CHATS | {"grammar": "root ::="}),
    (CHAT, CHATS | {"messages": "hello"}),
    (CHAT, CHATS | {"messages": [{"role": "user", "content": 5}]}),
    (CHAT, SHORT),
    (CHAT, CHATS | {"messages": [{"role": "user", "content": "x " * 5000}]}),
    ("/v1/completions", {"prompt": "Once", **SHORT}),
    ("/v1/completions", {"prompt": "Once", "stream": True, **SHORT}),
    ("/v1/completions", {"prompt": "Once", "logprobs": 3, **SHORT}),
    ("/v1/completions", {"prompt": ["Once", "Twice"], **SHORT}),
    (COMPLETION, {"prompt": "Once", "n_predict": 4}),
    (COMPLETION, {"prompt": "Once", "n_predict": 4, "stream": True}),
    (COMPLETION, {"prompt": "Once", "n_predict": 4, "n_probs": 3, "post_sampling_probs": True}),
    (COMPLETION, {"prompt": "Once", "n_predict": 4, "return_tokens": True}),
    (COMPLETION, {"prompt": [2, 10979, "upon"], "n_predict": 4}),
    (COMPLETION, {"prompt": "Once", "n_predict": 4, "logit_bias": [[5, False]]}),
    (COMPLETION, {"prompt": "Once", "n_predict": 4, "response_fields": ["content", "stop"]}),
    (COMPLETION, {"prompt": "Once", "n_predict": 0, "cache_prompt": False}),
    (COMPLETION, {"n_predict": 4}),
    ("/infill", {"input_prefix": "a", "input_suffix": "b", "n_predict": 4}),
    ("/tokenize", {"content": "What is it?"}),
    ("/tokenize", {"content": "What is it?", "add_special": True, "with_pieces": True}),
    ("/detokenize", {"tokens": [10979, 236764]}),
    ("/apply-template", {"messages": USER}),
    ("/v1/embeddings", {"input": "x"}),
    ("/v1/rerank", {"query": "x", "documents": ["y"]}),
    ("/v1/responses", {"input": "Say hello.", "max_output_tokens": 4}),
    ("/v1/messages", {"messages": USER, "max_tokens": 4}),
    ("/v1/messages", {"messages": USER, "max_tokens": 4, "stream": True, "system": "Be brief."}),
    ("/v1/messages", {"messages": USER, "max_tokens": 4, "stop_sequences": ["o"]}),
    ("/v1/messages", {"max_tokens": 4}),
    ("/v1/messages/count_tokens", {"messages": USER}),
]  # fmt: skip


def shape(value: Any) -> Any:
    """Keys and types; how long a list is depends on the text."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(shape(inner), sort_keys=True) for inner in value})
    return "number" if isinstance(value, int | float) else type(value).__name__


def ask(url: str, body: Any) -> tuple[int, str, Any]:
    """Status, type and shape of the answer."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            status, headers, raw = response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, headers, raw = error.code, error.headers, error.read()
    kind = headers.get_content_type()
    if kind != "text/event-stream":
        return status, kind, shape(json.loads(raw))
    lines = raw.decode().splitlines()
    events = [line[6:] for line in lines if line.startswith("data: ") and line[6] == "{"]
    ends = [line for line in lines if line and not line.startswith("data: {")]
    return status, kind, [shape([json.loads(event) for event in events]), sorted(set(ends))]


def test_each_request_is_answered_as_without_llmuxd() -> None:
    if not _has(LLAMA):
        pytest.skip("llama-server's image is not built")
    configure({GEMMA: _llama(GEMMA)}, {"volumes": VOLUMES})
    assert complete(GEMMA).text
    path = names.object_path(GEMMA)
    told = sh("busctl", "get-property", "org.llmux", path, "org.llmux.Model", "Endpoint")
    engine = told.split('"')[1]
    statuses = set()
    for target, body in REQUESTS:
        # Two samples of one request differ, in the keys too: a stop sequence is met or it is not.
        asked = {"model": GEMMA, "temperature": 0, **body}
        direct = ask(engine + target, asked)
        assert ask(f"http://127.0.0.1:4000{target}", asked) == direct, (target, body)
        statuses.add(direct[0])
    # Some of both kinds, or the table says nothing.
    assert {200, 400} <= statuses
