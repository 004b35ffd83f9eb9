# SPDX-License-Identifier: MIT
"""The plan's steps that compare: what vLLM lets go of, live checkpoints, pages, CUDA graphs off."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.machine.ring.guest import QWEN, sh

from . import measure
from .measure import MODELS, ask, configure
from .plan import Notes
from .switches import ROUNDS, told

# Level 1 is llmuxd's own choice. `kv` needs another container: `eager` has it.
PARK_SLEEPS = ("1", "2", "off")


def levels(notes: Notes) -> None:
    """Qwen parked after each sleep."""
    for sleep in PARK_SLEEPS:
        configure(tier="park", park_sleep=sleep)
        told(notes, f"image back, then park_sleep {sleep}", QWEN)
        _park(notes, f"park_sleep {sleep}")
        sh("llmuxctl", "checkpoint", QWEN, timeout=120)


def live(notes: Notes) -> None:
    """Qwen as it stands at each leaving: without a sleep, as is the default then, and after one."""
    for image_sleep, rounds in (("2", ROUNDS), ("auto", 1)):
        # One that runs leaves as it was told when it started.
        measure.leave(QWEN)
        configure(snapshot="live", image_sleep=image_sleep)
        told(notes, "before", QWEN)
        for _ in range(rounds):
            out = measure.command("llmuxctl", "checkpoint", QWEN)
            notes.add(
                f"live, image_sleep {image_sleep}: out", model=QWEN, seconds=out,
                image_GiB=measure.image_size(QWEN), vram_MiB=measure.vram(),
            )  # fmt: skip
            told(notes, f"live, image_sleep {image_sleep}: back", QWEN)


def small_pages(notes: Notes) -> None:
    """Images back where the kernel gives huge pages to those only that ask for them."""
    configure()
    for name in MODELS:
        measure.leave(name)
    with _huge_pages("madvise"):
        for _ in range(ROUNDS):
            for name in MODELS:
                told(notes, "image back, small pages", name)
                sh("llmuxctl", "checkpoint", name, timeout=120)


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


def eager(notes: Notes) -> None:
    """Without CUDA graphs, and with a KV cache that can be dropped alone."""
    if not measure.HAS_GPU:
        return
    measure.forget_texts()
    args = [*measure.model(QWEN)["args"], "--enforce-eager"]
    # The second one's images are taken anew each time: else it would go on with the first one's.
    for image_sleep, snapshot in (("2", "pristine"), ("kv", "live")):
        configure(
            tier="park", park_sleep="kv", image_sleep=image_sleep, snapshot=snapshot, args=args
        )
        told(notes, "eager: start", QWEN)
        if snapshot == "pristine":
            _park(notes, "eager: park_sleep kv")
        for _ in range(ROUNDS):
            out = measure.command("llmuxctl", "checkpoint", QWEN)
            notes.add(
                f"eager: image_sleep {image_sleep}, out", model=QWEN, seconds=out,
                image_GiB=measure.image_size(QWEN),
            )  # fmt: skip
            told(notes, f"eager: image_sleep {image_sleep}, back", QWEN)


def _park(notes: Notes, what: str) -> None:
    for _ in range(ROUNDS):
        out = measure.command("llmuxctl", "park", QWEN)
        notes.add(
            f"{what}: out", model=QWEN, seconds=out, vram_MiB=measure.vram(),
            ram_GiB=measure.ram(QWEN),
        )  # fmt: skip
        told(notes, f"{what}: back", QWEN)
    ask(QWEN)
