# SPDX-License-Identifier: MIT
"""The plan's steps that compare: what vLLM lets go of, live checkpoints, pages, CUDA graphs off."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.machine.ring.guest import QWEN, sh

from . import measure
from .measure import configure
from .plan import Notes
from .switches import ROUNDS, out, ready, told

EAGER = ", eager"


def parked_after(sleep: str, notes: Notes) -> None:
    """Qwen parked after this sleep."""
    # One that runs leaves as it was told when it started.
    measure.leave(QWEN)
    ready(notes, (QWEN,), tier="park", park_sleep=sleep)
    told(notes, f"image back, then park_sleep {sleep}", QWEN)
    _park(notes, QWEN, f"park_sleep {sleep}")
    sh("llmuxctl", "checkpoint", QWEN, timeout=120)


def live(image_sleep: str, notes: Notes) -> None:
    """Qwen as it stands at each leaving: without a sleep, as is the default then, or after one."""
    # One that runs leaves as it was told when it started.
    measure.leave(QWEN)
    ready(notes, (QWEN,), snapshot="live", image_sleep=image_sleep)
    told(notes, "before", QWEN)
    for _ in range(ROUNDS):
        out(notes, f"live, image_sleep {image_sleep}: out", QWEN)
        told(notes, f"live, image_sleep {image_sleep}: back", QWEN)
    measure.leave(QWEN)


def small_pages(notes: Notes) -> None:
    """Qwen's image back where the kernel gives huge pages to those only that ask for them."""
    ready(notes, (QWEN,))
    measure.leave(QWEN)
    with _huge_pages("madvise"):
        for _ in range(ROUNDS):
            told(notes, "image back, small pages", QWEN)
            sh("llmuxctl", "checkpoint", QWEN, timeout=120)


@contextmanager
def _huge_pages(setting: str) -> Iterator[None]:
    before = measure.huge_pages()
    sh("mount", "-o", "remount,rw", "/sys")
    measure.HUGE_PAGES.write_text(setting)
    try:
        yield
    finally:
        measure.HUGE_PAGES.write_text(before)
        sh("mount", "-o", "remount,ro", "/sys")


def eager(name: str, notes: Notes) -> None:
    """Without CUDA graphs, in a container that can drop its KV cache alone.

    Once it is parked after level 1: what that pins of the host's memory is to be in no image.
    """
    if not measure.HAS_GPU:
        return
    for other in measure.MODELS:
        measure.leave(other)
    _eager(name, "1")
    told(notes, "eager: cold", name, EAGER)
    notes.add("eager: serving", model=name, **measure.memory(name))
    _park(notes, name, "eager: park_sleep 1", EAGER, times=1)
    out(notes, "eager: image_sleep kv, out", name)
    _eager(name, "kv")
    told(notes, "eager: image_sleep kv, back", name, EAGER)
    _park(notes, name, "eager: park_sleep kv", EAGER)
    measure.leave(name)


def _eager(name: str, park_sleep: str) -> None:
    args = [*measure.model(name)["args"], "--enforce-eager"]
    configure(only=name, tier="park", park_sleep=park_sleep, image_sleep="kv", args=args)


def _park(notes: Notes, name: str, what: str, kind: str = "", times: int = ROUNDS) -> None:
    for _ in range(times):
        out(notes, f"{what}: out", name, "park")
        told(notes, f"{what}: back", name, kind)
