# SPDX-License-Identifier: MIT
"""The plan's steps in which memory is short: the GPU's, by another program, or the host's."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.machine.ring import guest
from tests.machine.ring.guest import OPT, QWEN, sh

from . import foreign, measure
from .measure import MODELS, Refused, ask, configure
from .plan import Notes
from .switches import has_image, ready, told

# Of the GPU, by the other program; it is too little for one model.
_LEFT_GIB = 10


def full_gpu(notes: Notes) -> None:
    """Another program takes the GPU's memory: a clear refusal, and no image is lost for it."""
    if not measure.HAS_GPU:
        return
    ready(notes)
    for name in MODELS:
        told(notes, "before", name)
    for name in MODELS:
        measure.leave(name)
    empty = measure.vram()
    with _filled(notes):
        notes.add("asked meanwhile", model=OPT, **_refused(OPT), image=has_image(OPT))
        configure(vram="24GiB")
        notes.add("asked meanwhile, its need known", model=OPT, **_refused(OPT))
    notes.add("foreign gone", vram_MiB=measure.vram(), empty_MiB=empty)
    configure()
    for name in MODELS:
        told(notes, "asked again", name)


def parked_beside(notes: Notes) -> None:
    """A parked model is to go to disk while its GPU is filled: by a dump, then without one.

    Before the latter it is asked for, and has no place there.
    """
    if not measure.HAS_GPU:
        return
    for snapshot in ("live", "pristine"):
        ready(notes, (QWEN,), tier="park", snapshot=snapshot, image_sleep="2")
        told(notes, f"before, {snapshot}", QWEN)
        sh("llmuxctl", "park", QWEN, timeout=120)
        with _filled(notes):
            if snapshot == "pristine":
                refused = _refused(QWEN)
                notes.add("asked meanwhile", model=QWEN, **refused, state=guest.state(QWEN))
            begin = time.monotonic()
            done = subprocess.run(
                ["llmuxctl", "checkpoint", QWEN], capture_output=True, text=True, timeout=100,
                check=False,
            )  # fmt: skip
            notes.add(
                f"checkpoint on a full GPU, {snapshot}", seconds=time.monotonic() - begin,
                status=done.returncode, said=done.stderr.strip(), state=guest.state(QWEN),
            )  # fmt: skip
        # By an operator, whom no cool-down keeps waiting.
        seconds = measure.command("llmuxctl", "switch", QWEN)
        notes.add(f"switched to again, {snapshot}", model=QWEN, seconds=seconds)
        told(notes, f"asked again, {snapshot}", QWEN)
        measure.leave(QWEN)


def spilled(notes: Notes) -> None:
    """A parked model is more than `park_memory`, and goes to its image on disk."""
    ready(notes)
    measure.configure({"park_memory": "1GiB"}, tier="park")
    told(notes, "before", QWEN)
    told(notes, "before", OPT)
    begin = time.monotonic()
    guest.eventually(lambda: guest.state(QWEN) == "checkpointed", "it is on disk", 90)
    notes.add("from memory to disk", seconds=time.monotonic() - begin, vram_MiB=measure.vram())
    told(notes, "asked again", QWEN)


@contextmanager
def _filled(notes: Notes) -> Iterator[None]:
    with foreign.hog(measure.total_vram() / 1024 - _LEFT_GIB):
        notes.add("foreign", vram_MiB=measure.vram())
        yield


def _refused(name: str) -> dict[str, Any]:
    begin = time.monotonic()
    try:
        ask(name, timeout=150)
    except Refused as error:
        seconds = time.monotonic() - begin
        return {"seconds": seconds, "said": str(error), "retry_after": error.retry_after}
    return {"seconds": time.monotonic() - begin, "said": "an answer", "retry_after": 0.0}
