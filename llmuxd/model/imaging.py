# SPDX-License-Identifier: MIT
"""Writing a model's image: podman's checkpoint of its container, and the record of it.

podman and CRIU write in place. So the image before is set aside first, and put back if the new one
does not come to its end, whoever crashed: `checkpoint.settle` finds out which of the two is whole.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from .. import loggers
from ..config import Sleep, Snapshot
from ..events import Event, about
from . import canary, cgroup, cuda_standby, identity, parking, place, vllm
from .activation import RELEASED, Activation
from .checkpoint import SHM, Checkpoint, aside, disk_usage, manifest, now, settle
from .container import Container, Facts, empty_directory
from .keeping import NoRoom, Room
from .moves import Stopwatch
from .process import TIMED_OUT, CommandFailed
from .server import WrongAnswer

log = loggers.named("llmux-model")


class Written(StrEnum):
    """What the model has on disk after a dump."""

    NEW = "new"
    OLD = "old"  # it failed; the server still runs, if CRIU left it so
    NOTHING = "nothing"  # the same without an image from before


class SleptBadly(Exception):
    """The engine was told to let go of what it need not keep, and did not; one line says why."""


def is_whole(facts: Facts, activation: Activation) -> bool:
    """Whether this container has an image on disk that could be restored here again."""
    record = Checkpoint.load(activation.model)
    if record is None or record.container_id != facts.id or record.trial:
        return False
    try:
        why_not = record.why_not(_here(facts, activation))
    except OSError as error:
        why_not = f"its files cannot be read: {error.strerror}"
    if why_not:
        log.warning("the checkpoint is of no use any more and is taken anew: %s", why_not,
                    extra=about(Event.CHECKPOINT_USELESS))  # fmt: skip
    return why_not is None


def write(
    container: Container,
    facts: Facts,
    activation: Activation,
    watch: Stopwatch,
    tell: Callable[[str], None],
    room: Room,
    trial: bool = False,
) -> Written:
    """Dump the container, which has ended then. What fails is told here and raised no further.

    `tell` hears RELEASED once the container is gone and only the disk is still at work. A `trial`
    is there to be measured: it does just what `activation` says, and once its dump has begun there
    is no other.
    """
    before = Checkpoint.load(activation.model)
    known = _known(activation, before, trial)
    directory = facts.checkpoint_directory
    place.prepare(
        directory, activation.checkpoint_dir, activation.model, _expected(activation, known)
    )
    record = Checkpoint(
        model=activation.model,
        container_id=facts.id,
        port=activation.port,
        identity=_here(facts, activation),
        taken_at=now(),
        seconds=0.0,
        # Should this one not come to its end, the next is to be told as much.
        size=known,
        directory=str(directory),
        overslept=before is not None and before.overslept,
        live=activation.snapshot is Snapshot.LIVE,
        trial=trial,
        place=str(directory.resolve()) if directory.is_symlink() else "",
    )
    try:
        with watch.part("canary"):
            answer = canary.of_run(activation)
        room.make(record.size)
        with watch.part("sleep"):
            nap = _let_go(activation, before, trial)
        if trial or not _set_aside(record, before):
            # Until the dump is whole, a crash must not leave a record that vouches for it.
            record.invalidate("the checkpoint was not finished")
        cuda = cuda_standby.standing_by(activation.model, activation.devices)
        with watch.part("dump"), cuda:
            container.checkpoint(directory)
        tell(RELEASED)
        with watch.part("sync"):
            _sync(directory, forget=trial)
        shm = directory.with_name(SHM)
        size = disk_usage(directory) + (shm.stat().st_blocks * 512 if shm.exists() else 0)
        seconds = watch.move().seconds
        # Should it be too large to be kept, the next one is not even written.
        record = replace(record, seconds=seconds, size=size)
        room.hold(size)
        replace(
            record,
            manifest=manifest(directory),
            canary=answer,
            canary_prompt=activation.canary_prompt,
            question=activation.question,
            back=nap.back,
            sleep=activation.image_sleep if nap.out else Sleep.OFF,
        ).save()
        log.info("checkpoint written in %.2f s, %.1f MB", seconds, size / 1e6,
                 extra=about(Event.CHECKPOINT_WRITTEN, phase="checkpoint",
                             seconds=seconds))  # fmt: skip
        written = Written.NEW
    except (CommandFailed, OSError, WrongAnswer, NoRoom, SleptBadly) as error:
        written = _failed(record, error)
    settle(directory, Checkpoint.load(activation.model))
    return written


def _failed(record: Checkpoint, error: Exception) -> Written:
    reason = f"the checkpoint failed: {error}"
    log.error("%s", reason, extra=about(Event.CHECKPOINT_FAILED, phase="checkpoint"))
    if isinstance(error, CommandFailed) and error.status == TIMED_OUT:
        # Its CRIU still holds the server frozen, and podman waits for both.
        cgroup.kill_others()
    slept_badly = isinstance(error, SleptBadly) and not record.trial
    before = Checkpoint.load(record.model)
    # One that was measured before it is no measurement of this one, nor worth keeping.
    measured = before is not None and before.trial and record.trial
    if before is None or before.invalid or measured:
        with contextlib.suppress(OSError):
            empty_directory(Path(record.directory))
        replace(record, slept_badly=slept_badly).invalidate(reason)
        return Written.NOTHING
    if slept_badly:
        with contextlib.suppress(OSError):
            replace(before, slept_badly=True).save()
    return Written.OLD


def _set_aside(record: Checkpoint, before: Checkpoint | None) -> bool:
    """Keep the image before for as long as the new one is written; False where there is none.

    Neither is it kept where the disk has not the room for both.
    """
    directory = Path(record.directory)
    if before is None or before.invalid or before.container_id != record.container_id:
        return False
    if not directory.is_dir() or shutil.disk_usage(directory).free < before.size:
        return False
    try:
        directory.resolve().rename(aside(directory))
        shm = directory.with_name(SHM)
        if shm.exists():
            # podman writes over it in place.
            shm.rename(aside(shm))
    except OSError as error:
        # A mount point, say.
        log.warning("the image before cannot be kept meanwhile: %s", error.strerror)
        return False
    if directory.is_symlink():
        directory.resolve().mkdir(mode=0o700)
    return True


def _known(activation: Activation, before: Checkpoint | None, trial: bool) -> int:
    """Bytes of the last image; 0 where that says nothing of this one.

    What is measured differs by what it lets go of, and so many times over.
    """
    if before is None:
        return 0
    measured = trial or before.trial
    return 0 if measured and before.sleep is not activation.image_sleep else before.size


def _expected(activation: Activation, known: int) -> int:
    """Bytes that the image will take, as far as anybody knows: as the last one, or its memory."""
    if known:
        return known
    return cgroup.resident(Path(activation.payload)) if activation.payload else 0


def _here(facts: Facts, activation: Activation) -> identity.Identity:
    return identity.here(
        activation.definition, facts.image_id, activation.devices, activation.container_form
    )


def _let_go(activation: Activation, before: Checkpoint | None, trial: bool) -> vllm.Nap:
    """Have the engine let go of what the image need not hold; how it did.

    The dump brings what it keeps on its GPUs into memory: what is too much for that ends here, with
    NoRoom. The kernel would kill for it, and often another process than these.
    """
    if trial and activation.image_sleep in vllm.TO_MEMORY:
        _check_memory(activation, trial)
    nap = _nap(activation, before, trial)
    try:
        vllm.let_go(activation.port, nap)
    except WrongAnswer as error:
        raise SleptBadly(f"the engine does not let go: {error}") from None
    if activation.devices:
        _check_memory(activation, trial)
    return nap


def _nap(activation: Activation, before: Checkpoint | None, trial: bool) -> vllm.Nap:
    if before is not None and before.slept_badly and not trial:
        log.warning("its last image did not come back from its sleep: this one holds everything")
        return vllm.Nap()
    nap = vllm.nap(activation.port, activation.image_sleep)
    if activation.image_sleep is not Sleep.OFF and not nap.out:
        log.warning("vLLM's sleep mode is off: the image will hold its KV cache and weights")
    return nap


def _check_memory(activation: Activation, trial: bool) -> None:
    """NoRoom where what the model holds of its GPUs is too much for the host's memory."""
    # It brings CUDA along, which a start does without.
    from . import vram

    check = vram.check_trial if trial else vram.check_dump
    try:
        check(parking.processes(activation))
    except vram.TooMuch as error:
        raise NoRoom(str(error)) from None


def _sync(directory: Path, *, forget: bool) -> None:
    """Have it on the disk before the record says so: a power cut must not leave empty pages.

    Nor the one before it under the new one's name: the directories above, where names changed, too.
    To `forget` it is to have none of it in memory any more, as it is once it has lain there a
    while: its restore would be faster than any later one.
    """
    place, shm = directory.resolve(), directory.with_name(SHM)
    above = dict.fromkeys((place, place.parent, directory.parent))
    for path in [*place.iterdir(), *([shm] if shm.exists() else []), *above]:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
            if forget:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
