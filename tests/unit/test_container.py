# SPDX-License-Identifier: MIT
from collections.abc import Sequence
from itertools import pairwise

import pytest

from llmuxd.config import ModelConfig, Sleep
from llmuxd.model import container, vllm


def argv_of(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What podman is called with to start the model."""
    seen: list[str] = []

    def run(argv: Sequence[str], timeout: float) -> str:
        seen.extend(argv)
        return ""

    monkeypatch.setattr(container, "run", run)
    container.Container(model).run(21000)
    return seen


def test_a_container_that_is_to_drop_its_kv_cache_has_the_extension(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ModelConfig("a", "i", env=(("PYTHONPATH", "/mine"),), park_sleep=Sleep.KV)
    argv = argv_of(model, monkeypatch)
    given = set(pairwise(argv))
    assert ("--env", "PYTHONPATH=/opt/llmux:/mine") in given
    assert ("--volume", f"{vllm.INSIDE}:/opt/llmux:ro") in given
    assert argv[-3:] == ["i", "--worker-extension-cls", "llmux_kv_cache.KvCache"]
    assert (vllm.INSIDE / "llmux_kv_cache.py").is_file()


def test_any_other_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = argv_of(ModelConfig("a", "i", args=("--x",)), monkeypatch)
    assert argv[-2:] == ["i", "--x"]
    assert "--volume" not in argv
