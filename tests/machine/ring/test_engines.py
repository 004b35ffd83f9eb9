# SPDX-License-Identifier: MIT
"""Real engines: vLLM (built for the CPU) and llama-server, with real checkpoints."""

from typing import Any

import pytest

from .guest import OPT, QWEN, complete, configure, eventually, post, sh, state

GEMMA = "gemma-3-270m"
VLLM = "localhost/llmux-vllm:latest"
LLAMA = "localhost/llmux-llama:latest"
VOLUMES = ["/srv/models:/srv/models:ro"]


def _has(image: str) -> bool:
    return sh("podman", "image", "exists", image, check=False) == "" and bool(
        sh("podman", "images", "-q", image)
    )


def _vllm(path: str, name: str) -> dict[str, Any]:
    return {
        "image": VLLM,
        "engine": "vllm",
        "args": ["--model", path, "--served-model-name", name, "--max-model-len", "512"],
    }


def _llama(name: str) -> dict[str, Any]:
    model = f"/srv/models/{name}/model.gguf"
    return {
        "image": LLAMA,
        "engine": "llama-server",
        "args": ["--model", model, "--alias", name, "--ctx-size", "2048"],
    }


def _way(model: str) -> str:
    from llmuxd import names

    path = names.object_path(model)
    line = sh("busctl", "get-property", "org.llmux", path, "org.llmux.Model", "ActivatedBy")
    return line.split('"')[1]


def _chat(model: str) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 10,
        "temperature": 0,
    }
    return post("/v1/chat/completions", body, timeout=600).text


def test_vllm_two_models_take_turns_and_answer_as_before() -> None:
    if not _has(VLLM):
        pytest.skip("vLLM's CPU build could not be had: its torch wheel is missing")
    configure(
        {
            OPT: _vllm("/srv/models/opt-125m", OPT),
            # In a read-only image it keeps its caches in memory.
            QWEN: _vllm("/srv/models/qwen2.5-3b-instruct", QWEN)
            | {"read_only": True, "env": {"HOME": "/tmp"}},
        },
        {"volumes": VOLUMES},
    )
    sh("llmuxctl", "warmup", timeout=600)
    assert [state(OPT), state(QWEN)] == ["checkpointed", "checkpointed"]
    opt, qwen = complete(OPT).text, _chat(QWEN)
    for _ in range(2):
        assert complete(OPT).text == opt
        assert _way(OPT) == "restore"
        eventually(lambda: state(QWEN) == "checkpointed", "it has left")
        assert _chat(QWEN) == qwen
        assert _way(QWEN) == "restore"
        eventually(lambda: state(OPT) == "checkpointed", "it has left")
    sh("busctl", "call", "org.llmux", "/Manager", "org.llmux.Manager", "Switch", "s", OPT)
    eventually(lambda: state(OPT) == "serving", "the switch by busctl")
    assert complete(OPT).text == opt


def test_llama_server_two_models_take_turns_and_answer_as_before() -> None:
    small = f"{GEMMA}-small"
    configure(
        {GEMMA: _llama(GEMMA) | {"read_only": True}, small: _llama(small) | {"privileged": True}},
        {"volumes": VOLUMES},
    )
    texts = {model: complete(model).text for model in (GEMMA, small)}
    for model in (GEMMA, small, GEMMA):
        assert complete(model).text == texts[model]
        assert _way(model) == "restore"
    sh("llmuxctl", "park", GEMMA)
    assert complete(GEMMA).text == texts[GEMMA]
