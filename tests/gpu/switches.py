# SPDX-License-Identifier: MIT
"""The plan's steps that llmuxd does by itself: cold starts, images, parking, both ways."""

import time

from llmuxd import names
from tests.machine.ring import guest
from tests.machine.ring.guest import sh

from . import measure
from .measure import MODELS, ask, configure
from .plan import Notes

ROUNDS = 3
SWITCHES = 20


def cold(notes: Notes) -> None:
    """Each model's first start, its first image, and what both cost in VRAM, RAM and disk."""
    guest.stop_everything()
    guest.wipe()
    configure()
    notes.add("before", vram_MiB=measure.vram(), available_GiB=measure.available())
    for name in MODELS:
        told(notes, "cold", name)
        notes.add(
            "serving", model=name, vram_MiB=measure.vram(), ram_GiB=measure.ram(name),
            available_GiB=measure.available(),
        )  # fmt: skip
        for _ in range(ROUNDS):
            told(notes, "warm", name)
        out = measure.command("llmuxctl", "checkpoint", name)
        notes.add(
            "image out", model=name, seconds=out, image_GiB=measure.image_size(name),
            vram_MiB=measure.vram(),
        )  # fmt: skip


def cold_again(notes: Notes) -> None:
    """Two more of the first starts, then one with what they compiled: vLLM keeps that in a volume.

    By `stop` a model's checkpoint is discarded, so that the next start is a cold one.
    """
    configure()
    for name in MODELS:
        sh("llmuxctl", "switch", name, timeout=240)
        for _ in range(ROUNDS - 1):
            sh("llmuxctl", "stop", name, timeout=240)
            measure.forget_compiled()
            told(notes, "cold", name)
        sh("llmuxctl", "stop", name, timeout=240)
        told(notes, "cold, compiled before", name)
        out = measure.command("llmuxctl", "checkpoint", name)
        notes.add("image out", model=name, seconds=out, image_GiB=measure.image_size(name))


def image(notes: Notes) -> None:
    """From the image on disk to the first completion, several times each; nothing else runs."""
    configure()
    free(notes)
    for _ in range(ROUNDS):
        for name in MODELS:
            told(notes, "image back", name)
            out = measure.command("llmuxctl", "checkpoint", name)
            notes.add("image kept, out", model=name, seconds=out, vram_MiB=measure.vram())


def image_switch(notes: Notes) -> None:
    """Requests for the two in turn: the old one leaves to its image, the new one comes from it."""
    configure()
    ask(MODELS[-1])
    for _ in range(ROUNDS):
        for name in MODELS:
            told(notes, "image switch", name)


def park(notes: Notes) -> None:
    """The same from memory, and what is left on the GPU while a model waits there."""
    configure(tier="park")
    for name in MODELS:
        told(notes, "image back", name)
    sh("llmuxctl", "park", MODELS[-1], timeout=120)
    notes.add(
        "parked, both", vram_MiB=measure.vram(), available_GiB=measure.available(),
        **{f"ram_GiB {name}": measure.ram(name) for name in MODELS},
    )  # fmt: skip
    for number in range(SWITCHES):
        name = MODELS[number % 2]
        told(notes, "parked switch", name)
        notes.add("parked switch, then", model=name, vram_MiB=measure.vram())
    for _ in range(ROUNDS):
        for name in MODELS:
            told(notes, "parked back", name)
            out = measure.command("llmuxctl", "park", name)
            notes.add("park out", model=name, seconds=out, vram_MiB=measure.vram())
    mismatches = sum("its canary says" in guest.journal(names.unit(m)) for m in MODELS)
    notes.add("canary", mismatches=mismatches)


def both_fit(notes: Notes) -> None:
    """Where `vram` says that both fit, the new one need not wait for the old one to leave."""
    configure(tier="park", vram="24GiB")
    for name in MODELS:
        told(notes, "both fit, first", name)
    for _ in range(ROUNDS):
        for name in MODELS:
            told(notes, "both fit", name)
    notes.add("both fit", vram_MiB=measure.vram())


def moment(notes: Notes) -> None:
    """Parked, with room on the card for both: the old one may leave once the new one answers."""
    configure(tier="park")
    for name in MODELS:
        told(notes, "for a moment, first", name)
        sh("llmuxctl", "park", name, timeout=120)
    ask(MODELS[-1])
    for _ in range(ROUNDS):
        for name in MODELS:
            told(notes, "both for a moment", name)
            # What leaves behind the answer must not be in the next switch's way.
            guest.eventually(_settled, "the old one has left", 20)
            notes.add("both for a moment, then", vram_MiB=measure.vram())


def _settled() -> bool:
    return sorted(guest.state(name) for name in MODELS) == ["parked", "serving"]


def told(notes: Notes, what: str, name: str) -> None:
    """Ask, and note how long it took, what was said, and what the units took of it."""
    since = time.time()
    answer = ask(name)
    notes.add(
        what, model=name, first=answer.first, end=answer.end, same=measure.same(name, answer.text),
        moves=measure.moves(since), text=answer.text,
    )  # fmt: skip


def free(notes: Notes) -> None:
    """Nothing on the GPU; every model in its image."""
    for name in MODELS:
        measure.leave(name)
    notes.add("before", vram_MiB=measure.vram(), available_GiB=measure.available())
