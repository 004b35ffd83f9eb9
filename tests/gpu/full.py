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
        configure(vram=measure.NEED)
        notes.add("asked meanwhile, its need known", model=OPT, **_refused(OPT))
    notes.add("foreign gone", vram_MiB=measure.vram(), empty_MiB=empty)
    configure()
    for name in MODELS:
        told(notes, "asked again", name)


def parked_beside(snapshot: str, notes: Notes) -> None:
    """A parked model has no place on its GPU, which is filled: it is asked for, and is to go to
    disk, for which a live one would have to be there again.
    """
    if not measure.HAS_GPU:
        return
    # A live image of one that was parked after level 1 would hold its pinned memory for good.
    live = {"image_sleep": "2", "park_sleep": "2"} if snapshot == "live" else {}
    ready(notes, (QWEN,), tier="park", snapshot=snapshot, **live)
    told(notes, "before", QWEN)
    sh("llmuxctl", "park", QWEN, timeout=120)
    empty = measure.vram()
    with _filled(notes):
        begin = time.monotonic()
        if snapshot == "live":
            done = subprocess.run(
                ["llmuxctl", "checkpoint", QWEN], capture_output=True, text=True, timeout=100,
                check=False,
            )  # fmt: skip
            notes.add(
                "checkpoint on a full GPU", seconds=time.monotonic() - begin,
                status=done.returncode, said=done.stderr.strip(), state=guest.state(QWEN),
            )  # fmt: skip
        notes.add(
            "asked meanwhile", model=QWEN, **_refused(QWEN), state=guest.state(QWEN),
            image=has_image(QWEN),
        )  # fmt: skip
    notes.add("foreign gone", vram_MiB=measure.vram(), empty_MiB=empty)
    # By an operator, whom no cool-down keeps waiting.
    seconds = measure.command("llmuxctl", "switch", QWEN)
    notes.add("switched to again", model=QWEN, seconds=seconds)
    told(notes, "asked again", QWEN)
    measure.leave(QWEN)


def spilled(notes: Notes) -> None:
    """A parked model is more than `park_memory`, and goes to disk: to the image that it has, then
    to one that is written for it.

    For that it is on its GPU again, so that both have to fit there: one that has no room is not
    sent to disk for `park_memory` alone.
    """
    ready(notes, (QWEN,))
    for snapshot, more in (
        ("pristine", {}),
        ("live", {"vram": measure.NEED, "image_sleep": "2", "park_sleep": "2"}),
    ):
        # One that runs leaves as it was told when it started.
        for name in MODELS:
            measure.leave(name)
        configure({"park_memory": "1GiB"}, tier="park", snapshot=snapshot, **more)
        told(notes, f"before, {snapshot}", QWEN)
        sh("llmuxctl", "park", QWEN, timeout=120)
        begin = time.monotonic()
        guest.eventually(lambda: guest.state(QWEN) == "checkpointed", "it is on disk", 60)
        notes.add(
            f"from memory to disk, {snapshot}", seconds=time.monotonic() - begin,
            vram_MiB=measure.vram(), image_GiB=measure.image_size(QWEN),
        )  # fmt: skip
        told(notes, f"asked again, {snapshot}", QWEN)
    measure.leave(QWEN)


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
