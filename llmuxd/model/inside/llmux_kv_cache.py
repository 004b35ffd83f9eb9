# SPDX-License-Identifier: MIT
"""A worker extension for vLLM (`--worker-extension-cls`): drops the KV cache, and only that.

Runs inside the container, in vLLM's worker. vLLM gets its memory for weights and KV cache from one
allocator (`--enable-sleep-mode`), which maps each piece at an address that stays its own while the
memory behind it goes and comes back; its sleep levels 1 and 2 do the same to all of it.
"""

from typing import Any

import torch
from vllm.device_allocator import cumem

_TAG = "kv_cache"


class KvCache:
    """Mixed into the worker by vLLM. The scheduler must stand still between the two calls."""

    llmux_dropped = False

    def llmux_drop_kv_cache(self) -> None:
        """Give the KV cache's memory back to the driver; what was in it is lost."""
        pieces = _pieces()
        if not pieces:
            raise RuntimeError("no KV cache to drop: was vLLM started with --enable-sleep-mode?")
        torch.cuda.synchronize()
        for piece in pieces:
            cumem.unmap_and_release(piece.handle)
        torch.cuda.empty_cache()
        _unpin()
        self.llmux_dropped = True

    def llmux_map_kv_cache(self) -> None:
        """Get memory for it anew, at its old addresses, where it was dropped."""
        if not self.llmux_dropped:
            return
        cumem.CuMemAllocator.get_instance().wake_up([_TAG])
        self.llmux_dropped = False


def _unpin() -> None:
    """Give back what PyTorch keeps of pinned host memory that nobody uses any more.

    Of a server that once slept by level 1 that is the size of its weights, and more, which an
    image of it would hold for good. PyTorch before 2.5 cannot.
    """
    empty = getattr(torch._C, "_host_emptyCache", None)
    if empty is not None:
        empty()


def _pieces() -> list[Any]:
    allocator = cumem.CuMemAllocator.get_instance()
    return [data for data in allocator.pointer_to_data.values() if data.tag == _TAG]
