# SPDX-License-Identifier: MIT
"""The plan's steps that llmuxd does by itself: cold starts, images, parking, both ways."""

import time
from collections.abc import Sequence
from typing import Any

from llmuxd.config import Tier
from llmuxd.model.container import RESTORE_LOG
from llmuxd.names import object_path, slug, unit
from tests.bench.share import Move, moves
from tests.machine.ring import guest
from tests.machine.ring.guest import sh

from . import foreign, measure, patience
from .measure import MODELS, ask, configure
from .plan import Notes

ROUNDS = 3
SWITCHES = 20


def cold(notes: Notes) -> None:
    """Each model's first start, its first image, and what both cost in VRAM, RAM and disk."""
    guest.stop_everything()
    guest.wipe()
    configure()
    notes.add("before", **_empty(), disk_GiB=measure.disk())
    for name in MODELS:
        told(notes, "cold", name)
        notes.add("serving", model=name, **measure.memory(name))
        for _ in range(ROUNDS):
            told(notes, "warm", name)
        out(notes, "image out", name)


def cold_again(name: str, times: int, notes: Notes) -> None:
    """More first starts: vLLM keeps what it compiled in a volume, which is emptied."""
    configure()
    for other in MODELS:
        # One that has a dump to write leaves before a cold start begins.
        measure.leave(other)
    for _ in range(times):
        _stop(name)
        measure.forget_compiled(name)
        told(notes, "cold", name)
    out(notes, "image out", name)


def cold_compiled(notes: Notes) -> None:
    """A cold start with what one before has compiled."""
    configure()
    name = MODELS[0]
    _stop(name)
    told(notes, "cold, compiled before", name)
    out(notes, "image out", name)


def _stop(name: str) -> None:
    """Have its next start be a cold one: a stop discards the image of a model that runs."""
    if has_image(name):
        sh("llmuxctl", "switch", name, timeout=240)
    sh("llmuxctl", "stop", name, timeout=240)


def image(notes: Notes) -> None:
    """From the image on disk to the first completion, several times each; nothing else runs."""
    configure()
    free(notes)
    for _ in range(ROUNDS):
        for name in MODELS:
            told(notes, "image back", name)
            notes.add("back from its image", model=name, **measure.memory(name))
            out(notes, "image kept, out", name)


def image_switch(notes: Notes) -> None:
    """Requests for the two in turn: the old one leaves to its image, the new one comes from it.

    In the second half each request comes with the answer before, and may find its model leaving.
    """
    configure()
    for name in MODELS:
        measure.leave(name)
    ask(MODELS[-1])
    for what in ("image switch", "image switch, at once"):
        for _ in range(ROUNDS):
            for name in MODELS:
                if what == "image switch":
                    settle("checkpointed")
                kept = patience.kept_until(name, Tier.CHECKPOINT)
                told(notes, what, name, kept_until=kept)


def park(notes: Notes) -> None:
    """The same from memory, and what is left on the GPU while a model waits there."""
    configure(tier="park")
    for name in MODELS:
        # One from its image, the other perhaps from memory, where it went for the first.
        told(notes, "before", name)
        sh("llmuxctl", "park", name, timeout=120)
    guest.eventually(lambda: states() == ["parked", "parked"], "both are parked", 20)
    notes.add(
        "parked, both", vram_MiB=measure.vram(), available_GiB=measure.available(),
        **{f"ram_GiB {name}": measure.ram(name) for name in MODELS},
    )  # fmt: skip
    for number in range(SWITCHES):
        told(notes, "parked switch", MODELS[number % 2])
    for _ in range(ROUNDS):
        for name in MODELS:
            told(notes, "parked back", name)
            notes.add("back from memory", model=name, **measure.memory(name))
            out(notes, "park out", name, "park")
    mismatches = sum("its canary says" in guest.journal(unit(m)) for m in MODELS)
    notes.add("canary", mismatches=mismatches)


def one_by_one(notes: Notes) -> None:
    """On a GPU that a foreign program leaves room on for one: the old one leaves first."""
    if not measure.HAS_GPU:
        return
    for name in MODELS:
        measure.leave(name)
    with foreign.hog(measure.total_vram() / 1024 - 1.5 * measure.VRAM_GIB):
        for tier, rest in (("park", "parked"), ("checkpoint", "checkpointed")):
            # Without `vram` all that no process is seen to hold would pass for the model's own.
            configure(tier=tier, vram=measure.NEED)
            for name in MODELS:
                ask(name)
            for _ in range(ROUNDS):
                for name in MODELS:
                    settle(rest)
                    kept = patience.kept_until(name, Tier(tier))
                    told(notes, f"one by one, tier {tier}", name, kept_until=kept)
        notes.add("one by one", vram_MiB=measure.vram())


def both_fit(notes: Notes) -> None:
    """Where `vram` says that both fit, the new one need not wait for the old one to leave."""
    ready(notes, tier="park", vram=measure.NEED)
    for name in MODELS:
        told(notes, "both fit, first", name)
    for _ in range(ROUNDS):
        for name in MODELS:
            told(notes, "both fit", name)
    notes.add("both fit", vram_MiB=measure.vram())
    for name in MODELS:
        measure.leave(name)


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
            settle("parked")
            notes.add("both for a moment, then", vram_MiB=measure.vram())


def ready(notes: Notes, names: Sequence[str] = MODELS, **more: Any) -> None:
    """llmuxd with these settings, and each of these models with an image to come from.

    A step before may have spoilt one; no cold start is to be among what this one measures.
    """
    configure(**more)
    without = [name for name in names if not has_image(name)]
    if without:
        seconds = measure.command("llmuxctl", "warmup", *without, timeout=400)
        notes.add("warmed up", models=without, seconds=seconds)


def has_image(name: str) -> bool:
    """Whether llmuxd would bring the model back from one."""
    path = object_path(name)
    told = sh("busctl", "get-property", "org.llmux", path, "org.llmux.Model", "CheckpointValid")
    return told == "b true"


def settle(rest: str) -> None:
    """Wait for the old one, which leaves behind the answer of the new one, to be at `rest`."""
    guest.eventually(lambda: states() == sorted([rest, "serving"]), "the old one has left", 20)


def states() -> list[str]:
    """The models' states, sorted."""
    return sorted(guest.state(name) for name in MODELS)


def told(notes: Notes, what: str, name: str, kind: str = "", **more: Any) -> None:
    """Ask, and note how long it took, what was said, and what the units took of it.

    What is said need be the same only among engines of one `kind`.
    """
    since = time.time()
    answer = ask(name)
    made = moves(since)
    notes.add(
        what, model=name, asked=since, first=answer.first, end=answer.end,
        same=measure.same(name + kind, answer.text), moves=made, text=answer.text,
        **restore_log(notes, name, made), **more,
    )  # fmt: skip


def restore_log(notes: Notes, name: str, made: list[Move]) -> dict[str, str]:
    """Where what CRIU wrote of the restore among these moves is kept: when it did what.

    Nothing where the model came back in another way.
    """
    restored = {"model": slug(name), "direction": "in", "way": "restore"}
    if not any(restored.items() <= move.items() for move in made):
        return {}
    # podman has it beside the image, until the next one.
    log = guest.image(name).with_name(RESTORE_LOG)
    return {"log": notes.keep("restore.log", log)} if log.exists() else {}


def out(notes: Notes, what: str, name: str, how: str = "checkpoint") -> None:
    """Have it leave, and note how long that took, what of it the unit took, and what is left."""
    since = time.time()
    seconds = measure.command("llmuxctl", how, name)
    image = {"image_GiB": measure.image_size(name)} if how == "checkpoint" else {}
    notes.add(
        what, model=name, seconds=seconds, moves=moves(since), **image, **measure.memory(name)
    )


def free(notes: Notes) -> None:
    """Nothing on the GPU; every model in its image."""
    for name in MODELS:
        measure.leave(name)
    notes.add("before", **_empty())


def _empty() -> dict[str, float]:
    return {"vram_MiB": measure.vram(), "available_GiB": measure.available()}
