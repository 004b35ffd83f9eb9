# SPDX-License-Identifier: MIT
"""Real engines: vLLM (built for the CPU) and llama-server, with real checkpoints."""

from pathlib import Path
from typing import Any

import pytest

from llmuxd import names

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
    path = names.object_path(model)
    line = sh("busctl", "get-property", "org.llmux", path, "org.llmux.Model", "ActivatedBy")
    return line.split('"')[1]


def _is_read_only(model: str) -> bool:
    """Whether the server's root file system is; asked from outside, without podman's word on it."""
    pid = sh("podman", "inspect", "--format", "{{.State.Pid}}", names.container(model))
    lines = Path(f"/proc/{pid}/mountinfo").read_text(encoding="ascii").splitlines()
    (options,) = (fields[5] for line in lines if (fields := line.split())[4] == "/")
    return "ro" in options.split(",")


def _cached(model: str) -> dict[str, tuple[int, int]]:
    """What vLLM has put by: each file's inode and time of change."""
    place = Path("/var/cache/llmux", names.slug(model), ".cache/vllm")
    found = [path for path in place.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


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
            # Where it has its caches in its own images; here it is built with filled ones.
            QWEN: _vllm("/srv/models/qwen2.5-3b-instruct", QWEN)
            | {"env": {"VLLM_CACHE_ROOT": "/root/.cache/vllm"}},
        },
        {"volumes": VOLUMES},
    )
    sh("llmuxctl", "warmup", timeout=600)
    assert [state(OPT), state(QWEN)] == ["checkpointed", "checkpointed"]
    cached = _cached(QWEN)
    assert cached
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
    assert _is_read_only(OPT)
    # A new container finds what the one before has put by.
    sh("podman", "rm", "--force", names.container(QWEN))
    assert _chat(QWEN) == qwen
    assert _way(QWEN) == "cold" and _is_read_only(QWEN)
    assert _cached(QWEN) == cached


def test_llama_server_two_models_take_turns_and_answer_as_before() -> None:
    small = f"{GEMMA}-small"
    configure(
        {GEMMA: _llama(GEMMA), small: _llama(small) | {"privileged": True}},
        {"volumes": VOLUMES},
    )
    texts = {model: complete(model).text for model in (GEMMA, small)}
    for model in (GEMMA, small, GEMMA):
        assert complete(model).text == texts[model]
        assert _way(model) == "restore"
        assert _is_read_only(model) is (model == GEMMA)
    sh("llmuxctl", "park", GEMMA)
    assert complete(GEMMA).text == texts[GEMMA]
