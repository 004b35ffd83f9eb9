# SPDX-License-Identifier: MIT
"""The plan's steps that compare: what vLLM lets go of, live checkpoints, pages, CUDA graphs off."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.machine.ring.guest import OPT, QWEN, sh

from . import image, measure
from .measure import ask, configure
from .plan import Notes
from .switches import ROUNDS, ready, told

EAGER = ", eager"


def parked_after(sleep: str, notes: Notes) -> None:
    """Qwen parked after this sleep."""
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
        out = measure.command("llmuxctl", "checkpoint", QWEN)
        notes.add(
            f"live, image_sleep {image_sleep}: out", model=QWEN, seconds=out,
            image_GiB=measure.image_size(QWEN), vram_MiB=measure.vram(),
        )  # fmt: skip
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


def eager(notes: Notes) -> None:
    """opt-125m without CUDA graphs, and with a KV cache that can be dropped alone."""
    if not measure.HAS_GPU:
        return
    # One that runs does so with its graphs.
    sh("llmuxctl", "stop", OPT, timeout=120)
    _eager("2", "pristine")
    told(notes, "eager: start", OPT, EAGER)
    _park(notes, OPT, "eager: park_sleep kv", EAGER)
    _eager_images(notes, "2")


def eager_kv(notes: Notes) -> None:
    """The same after dropping the KV cache alone, which is in the image then no more."""
    if not measure.HAS_GPU:
        return
    measure.leave(OPT)
    # These images are taken anew each time: else it would go on with the one from before.
    _eager("kv", "live")
    told(notes, "eager: before", OPT, EAGER)
    _eager_images(notes, "kv")


def _eager(image_sleep: str, snapshot: str) -> None:
    usual = measure.model(OPT)
    configure(
        tier="park", park_sleep="kv", image_sleep=image_sleep, snapshot=snapshot,
        args=[*usual["args"], "--enforce-eager"],
        # Its packages are found by the image's own, in place of which llmuxd gives it another.
        env=usual["env"] | {"PYTHONPATH": f"/{image.SITE}"},
    )  # fmt: skip


def _eager_images(notes: Notes, image_sleep: str) -> None:
    for _ in range(ROUNDS):
        out = measure.command("llmuxctl", "checkpoint", OPT)
        notes.add(
            f"eager: image_sleep {image_sleep}, out", model=OPT, seconds=out,
            image_GiB=measure.image_size(OPT),
        )  # fmt: skip
        told(notes, f"eager: image_sleep {image_sleep}, back", OPT, EAGER)


def _park(notes: Notes, name: str, what: str, kind: str = "") -> None:
    for _ in range(ROUNDS):
        out = measure.command("llmuxctl", "park", name)
        notes.add(
            f"{what}: out", model=name, seconds=out, vram_MiB=measure.vram(),
            ram_GiB=measure.ram(name),
        )  # fmt: skip
        told(notes, f"{what}: back", name, kind)
    ask(name)
