# SPDX-License-Identifier: MIT
"""Bringing a model up: a restore of its image where it has one, else a cold start."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from .. import files, loggers
from ..config import ModelConfig
from ..events import Event, about
from . import (
    canary,
    cgroup,
    cuda_standby,
    engine,
    identity,
    later,
    place,
    port,
    server,
    shortage,
    vllm,
)
from .activation import Way
from .checkpoint import Checkpoint, settle
from .container import Container
from .identity import Identity
from .meanwhile import ask
from .moves import Stopwatch
from .process import CommandFailed

log = loggers.named("llmux-model")

# Where nobody can tell who fills its GPU an image has failed so often, and for so many seconds,
# before it is taken for one that never fits. ollama, say, leaves a GPU after 5 minutes.
STARVED_TIMES = 3
STARVED_FOR = 600.0


class StartFailed(Exception):
    """Neither restore nor cold start brought the model up; one line says why."""


class ShortOf(StartFailed):
    """It was not restored for want of what the host may have again: its image is kept for then."""


class CannotRestore(Exception):
    """There is no checkpoint that could be, or was, restored; one line says why.

    `why` is the bare reason, for the checkpoint's record.
    """

    def __init__(self, message: str, why: str = ""):
        super().__init__(message)
        self.why = why or message


@dataclass(frozen=True)
class Running:
    """A healthy server: its port on 127.0.0.1, the process that watches it, its cgroup.

    `why_cold`: why it was not restored; empty where it was, and `identity` is its image's then.
    `pid` is its first process.
    """

    port: int
    conmon_pid: int
    payload: str
    why_cold: str = ""
    identity: Identity | None = None
    pid: int = 0


class Start:
    """One start of a model. `tell` shows what it is at, `watch` measures its parts."""

    def __init__(
        self,
        model: ModelConfig,
        container: Container,
        tell: Callable[[str], None],
        watch: Stopwatch,
    ):
        self._model = model
        self._container = container
        self._tell = tell
        self._watch = watch

    def run(self) -> Running:
        """Have the model healthy; StartFailed otherwise, and nothing of it but an image is left.

        CommandFailed where podman does not work, or its network cannot be closed: nothing was done.
        """
        self._watch.way = Way.RESTORE
        closing = ask(self._container.network.close)
        try:
            return self._restore(closing)
        except CannotRestore as reason:
            closing()
            self._watch.way = Way.COLD
            log.info("cold start: %s", reason, extra=about(Event.MODEL_COLD_START))
            # Where podman does not work this fails, and the checkpoint is good for another time.
            with self._watch.part("clean"):
                self._container.remove()
                cgroup.start_over()
            void_checkpoint(self._model.name, reason.why)
            return replace(self._start_cold(), why_cold=str(reason))

    def _restore(self, closing: Callable[[], None]) -> Running:
        """Restore if there is something to restore; CannotRestore has the reason otherwise."""
        with self._watch.part("look"):
            record = self._usable()
        with self._watch.part("close"):
            closing()
        self._tell("restoring the checkpoint")
        begin = time.time()
        try:
            with self._watch.part("restore"), self._cuda():
                self._container.restore(self._model.restore_timeout, later.load)
        except (CommandFailed, OSError) as error:
            disks = Path(record.directory).parent, files.runtime_root()
            self._blame_host(record, str(error), begin, shortage.of_disks(disks))
            # Where podman does not work at all it is not the image's fault, and this raises too.
            self._container.image_id()
            raise self._not_restored(record, str(error)) from None
        # podman needs 0.1 s to tell. No process may begin while it restores: it moves all that are
        # in the unit's cgroup out of the way, and one that it has missed makes the kernel refuse
        # the container's (`cg: Can't move 1 into …: Operation not supported`, one of 47 restores).
        image = ask(self._container.image_id)
        try:
            running = self._wait_healthy(record.port, self._model.restore_timeout)
        except (CommandFailed, OSError, engine.EngineDied, engine.EngineTimeout) as error:
            self._blame_host(record, str(error), begin)
            raise self._not_restored(record, str(error)) from None
        try:
            with self._watch.part("wake"):
                vllm.take_up(record.port, record.back)
        except server.WrongAnswer as error:
            self._blame_host(record, str(error), begin)
            # Somebody else may fill the GPU just now. Twice in a row it is the sleep's fault.
            if not record.trial:
                record = replace(record, slept_badly=record.overslept, overslept=True)
            raise self._not_restored(record, str(error)) from None
        try:
            with self._watch.part("canary"):
                self._check_canary(record)
        except server.WrongAnswer as error:
            self._blame_host(record, str(error), begin)
            # Perhaps it would have, had it not slept.
            record = replace(record, slept_badly=bool(record.back) and not record.trial)
            raise self._not_restored(record, str(error)) from None
        with self._watch.part("image"):
            _check_image(record, image)
        if record.overslept or record.starved:
            replace(record, overslept=False, starved=0, starved_since=0.0).save()
        return replace(running, identity=record.identity)

    def _cuda(self) -> contextlib.AbstractContextManager[None]:
        """What CRIU's CUDA plugin asks is answered, and the GPU initialized, while CRIU reads."""
        model = self._model
        if not model.device_names:
            # It is not even loaded by then.
            return contextlib.nullcontext()
        return cuda_standby.standing_by(model.name, model.device_names, initialize=True)

    def _usable(self) -> Checkpoint:
        """The record of an image that can be restored here and now; CannotRestore without one.

        That the container's image is still the one of that name is left to `_check_image`.
        """
        record = Checkpoint.load(self._model.name)
        if record is None:
            raise CannotRestore("there is no checkpoint")
        model = self._model
        here = identity.here(model.definition, record.identity.image_id, model.device_names)
        try:
            settle(Path(record.directory), record)
            why_not = record.why_not(here)
        except OSError as error:
            why_not = f"its files cannot be read: {error.strerror}"
        if why_not is None and not port.free(record.port):
            why_not = f"the port {record.port} that it listens on is taken"
        if why_not is not None:
            raise CannotRestore(f"the checkpoint cannot be used: {why_not}", why_not)
        return record

    def _not_restored(self, record: Checkpoint, why: str) -> CannotRestore:
        reason = f"the restore failed: {why}"
        log.error("%s", reason, extra=about(Event.MODEL_RESTORE_FAILED, phase="restore"))
        record.invalidate(reason)
        cgroup.kill_others()
        return CannotRestore(reason)

    def _blame_host(self, record: Checkpoint, why: str, begin: float, missing: str = "") -> None:
        """ShortOf where the host lacked what the restore, begun at that Unix time, took."""
        told = f"{why}\n{self._container.said_since(begin)}"
        missing = shortage.of(told, gpu=lambda: self._others_fill_gpu(record)) or missing
        if not missing:
            return
        reason = f"the restore failed: {why}: {missing}; its checkpoint is kept until then"
        cgroup.kill_others()
        try:
            self._container.halt()
        except CommandFailed as error:
            # As the disk is full, perhaps; its next start does it.
            log.warning("what is left of it cannot be ended: %s", error)
        raise ShortOf(reason)

    def _others_fill_gpu(self, record: Checkpoint) -> bool:
        """Whether that may be why its GPU is full: what takes more than a whole one never fits."""
        if not self._model.device_names:
            return False
        from . import vram

        shared = vram.is_shared(self._model.gpus, self._model.name)
        if shared is not None:
            return shared
        now = time.time()
        starved, since = record.starved + 1, record.starved_since or now
        with contextlib.suppress(OSError):
            replace(record, starved=starved, starved_since=since).save()
        return starved < STARVED_TIMES or now - since < STARVED_FOR

    def _check_canary(self, record: Checkpoint) -> None:
        """Ask what was asked when the image was taken; WrongAnswer where it says something else."""
        if not record.canary or not canary.is_asked(self._model):
            return
        answer = canary.ask_canary(record.port, record.canary_prompt, record.question)
        if not canary.agree(record.canary, answer):
            raise server.WrongAnswer(
                f"its canary says {answer or 'nothing'}, before the checkpoint {record.canary}"
            )

    def _start_cold(self) -> Running:
        self._tell("starting cold")
        try:
            listen = port.choose(self._model.name)
            with self._watch.part("run"):
                self._container.run(listen)
            # Another release may lie in its place by the time when the server is up.
            later.load()
            self._tell("starting cold: waiting for the server's health")
            return self._wait_healthy(listen, self._model.start_timeout)
        except (CommandFailed, port.NoPort, engine.EngineDied, engine.EngineTimeout) as error:
            words = self._container.last_words()
            # Here and not after the unit's end: systemd would kill podman's own clean-up half-way.
            try:
                self._container.remove()
            except CommandFailed as more:
                log.error("what is left of it cannot be removed: %s", more)
            raise StartFailed(f"{error}: {words}" if words else str(error)) from None

    def _wait_healthy(self, listen: int, timeout: float) -> Running:
        with self._watch.part("health"):
            pid, conmon = self._pids()
            cgroup.gather(pid)
            engine.wait_healthy(self._model, listen, conmon, timeout)
        return Running(listen, conmon, _payload(pid, conmon), pid=pid)

    def _pids(self) -> tuple[int, int]:
        found = self._container.pids()
        if found is not None:
            return found
        facts = self._container.inspect()
        if facts is None or not facts.running:
            raise engine.EngineDied("the container ended at once")
        return facts.pid, facts.conmon_pid


def _check_image(record: Checkpoint, image: Callable[[], str]) -> None:
    """CannotRestore where a cold start would use another image than the one restored."""
    try:
        found = replace(record.identity, image_id=image())
    except CommandFailed as error:
        log.warning("whether its container image changed is not known: %s", error)
        return
    why_not = record.identity.difference(found)
    if why_not is not None:
        raise CannotRestore(f"the checkpoint cannot be used: {why_not}", why_not)


def _payload(pid: int, conmon: int) -> str:
    """The container's own cgroup; empty where it has none that conmon is not in too."""
    payload, watcher = cgroup.of_process(pid), cgroup.of_process(conmon)
    unit = cgroup.own_unit()
    if unit is None or payload is None or watcher is None or unit not in payload.parents:
        return ""
    return "" if payload == watcher or payload in watcher.parents else str(payload)


def void_checkpoint(model: str, reason: str) -> None:
    """The container goes, and its image with it; the record says why."""
    record = Checkpoint.load(model)
    if record is not None:
        place.remove(record)
        if not record.invalid:
            record.invalidate(reason)
