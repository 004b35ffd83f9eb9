# SPDX-License-Identifier: MIT
"""The worker extension that runs in vLLM, on a PyTorch and a vLLM that only tell what was asked."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmuxd.model import vllm


class Host:
    """What the extension meets: `asked` is what it did, in order."""

    def __init__(self, *pieces: tuple[str, str]):
        self.asked: list[str] = []
        note = self.asked.append
        found = {
            number: SimpleNamespace(handle=handle, tag=tag)
            for number, (handle, tag) in enumerate(pieces)
        }
        self.allocator = SimpleNamespace(
            pointer_to_data=found, wake_up=lambda tags: note(f"map {tags}")
        )
        self.torch = SimpleNamespace(
            cuda=SimpleNamespace(
                synchronize=lambda: note("wait"), empty_cache=lambda: note("empty the GPU's cache")
            ),
            _C=SimpleNamespace(_host_emptyCache=lambda: note("empty the host's cache")),
        )
        self.cumem = SimpleNamespace(
            unmap_and_release=lambda handle: note(f"unmap {handle}"),
            CuMemAllocator=SimpleNamespace(get_instance=lambda: self.allocator),
        )

    def extension(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A worker that it is mixed into."""
        there = ModuleType("vllm.device_allocator")
        there.cumem = self.cumem  # type: ignore[attr-defined]
        modules = {"torch": self.torch, "vllm": ModuleType("vllm"), "vllm.device_allocator": there}
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        name, _, worker = vllm.EXTENSION.partition(".")
        spec = importlib.util.spec_from_file_location(name, vllm.INSIDE / f"{name}.py")
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return getattr(loaded, worker)()


def test_the_cache_goes_and_comes_back_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(("a", "weights"), ("b", "kv_cache"), ("c", "kv_cache"))
    worker = host.extension(monkeypatch)
    worker.llmux_drop_kv_cache()
    assert host.asked[:3] == ["wait", "unmap b", "unmap c"]
    assert "unmap a" not in host.asked and "empty the GPU's cache" in host.asked
    host.asked.clear()
    worker.llmux_map_kv_cache()
    worker.llmux_map_kv_cache()
    assert host.asked == ["map ['kv_cache']"]


def test_what_level_1_has_pinned_is_in_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(("b", "kv_cache"))
    host.extension(monkeypatch).llmux_drop_kv_cache()
    assert host.asked[-1] == "empty the host's cache"


def test_an_older_pytorch_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(("b", "kv_cache"))
    del host.torch._C._host_emptyCache
    host.extension(monkeypatch).llmux_drop_kv_cache()
    assert host.asked[-1] == "empty the GPU's cache"


def test_without_sleep_mode_there_is_none_to_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Host(("a", "weights")).extension(monkeypatch)
    with pytest.raises(RuntimeError, match="--enable-sleep-mode"):
        worker.llmux_drop_kv_cache()
