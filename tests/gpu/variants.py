# SPDX-License-Identifier: MIT
"""The plan's steps that compare: what vLLM lets go of, live checkpoints, pages, CUDA graphs off."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.machine.ring.guest import QWEN, sh

from . import measure
from .measure import MODELS, ask, configure
from .plan import Notes
from .switches import ROUNDS, told

# The first two are llmuxd's own choices.
PARK_SLEEPS = ("1", "2", "kv", "off")
IMAGE_SLEEPS = ("1", "off")


def levels(notes: Notes) -> None:
    """Qwen parked after each sleep, and its image after the sleeps that are not the default."""
    for sleep in PARK_SLEEPS[:2] + PARK_SLEEPS[3:]:
        configure(tier="park", park_sleep=sleep)
        told(notes, f"image back, then park_sleep {sleep}", QWEN)
        _park(notes, f"park_sleep {sleep}")
        sh("llmuxctl", "checkpoint", QWEN, timeout=120)


def live(notes: Notes) -> None:
    """Qwen as it stands at each leaving: without a sleep, as is the default then, and after one."""
    for image_sleep, rounds in (("2", ROUNDS), ("auto", 1)):
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
    for park_sleep, image_sleep in (("kv", "2"), ("kv", "kv")):
        configure(tier="park", park_sleep=park_sleep, image_sleep=image_sleep, args=args)
        told(notes, "eager: start", QWEN)
        _park(notes, f"eager: park_sleep {park_sleep}")
        out = measure.command("llmuxctl", "checkpoint", QWEN)
        notes.add(
            f"eager: image_sleep {image_sleep}", seconds=out, image_GiB=measure.image_size(QWEN)
        )
        for _ in range(ROUNDS):
            told(notes, f"eager: image back, image_sleep {image_sleep}", QWEN)
            sh("llmuxctl", "checkpoint", QWEN, timeout=120)


def _park(notes: Notes, what: str) -> None:
    for _ in range(ROUNDS):
        out = measure.command("llmuxctl", "park", QWEN)
        notes.add(
            f"{what}: out", model=QWEN, seconds=out, vram_MiB=measure.vram(),
            ram_GiB=measure.ram(QWEN),
        )  # fmt: skip
        told(notes, f"{what}: back", QWEN)
    ask(QWEN)
