# SPDX-License-Identifier: MIT
"""The life of one model's unit: ExecStart, ExecStop and ExecStopPost.

Start: restore, else a cold start. Stop: checkpoint, else end it and say so. After the stop:
nothing that holds the GPU, a port or half a container is left, whoever died and when.
"""

import contextlib
import logging
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import sdnotify

from ..config import ModelConfig, Sleep, Snapshot
from ..events import Event, about
from . import cgroup, engine, identity, parking, port, vllm
from .activation import (
    Activation,
    Leave,
    Way,
    conmon_pidfile,
    mark_kept,
    stopping_mark,
    take_leave_order,
    take_park_order,
    was_kept,
)
from .checkpoint import Checkpoint, disk_usage, manifest, now
from .container import Container, Facts, empty_directory
from .process import TIMED_OUT, CommandFailed
from .server import WrongAnswer

log = logging.getLogger("llmux-model")

# What podman itself may take on top of the configured time for the server's start.
PODMAN_MARGIN = 600.0


class StartFailed(Exception):
    """Neither restore nor cold start brought the model up; one line says why."""


class CannotRestore(Exception):
    """There is no checkpoint that could be, or was, restored; one line says why."""


class NoRoom(Exception):
    """The disk is too full for an image; one line says by how much."""


class SleptBadly(Exception):
    """The engine was told to let go of what it need not keep, and did not; one line says why."""


class DiedAlone(Exception):
    """The container ended without an order."""


@dataclass(frozen=True)
class Running:
    """A healthy server: its port on 127.0.0.1, the process that watches it, its cgroup."""

    port: int
    conmon_pid: int
    payload: str


class Lifecycle:
    """One model, as its unit's commands see it."""

    def __init__(self, model: ModelConfig):
        self._model = model
        self._container = Container(model)
        self._notify = sdnotify.SystemdNotifier().notify

    def tell(self, text: str) -> None:
        """What `systemctl status` shows of the unit."""
        self._notify(f"STATUS={text}")

    def start(self) -> None:
        """Bring the model to health and hand the unit's main process over to conmon."""
        begin = time.monotonic()
        limit = self._model.start_timeout + 2 * self._model.restore_timeout + PODMAN_MARGIN
        self._notify(f"EXTEND_TIMEOUT_USEC={int(limit * 1e6)}")
        stopping_mark(self._model.name).unlink(missing_ok=True)
        way, why_cold = Way.RESTORE, ""
        try:
            running = self._restore()
        except CannotRestore as reason:
            way, why_cold = Way.COLD, str(reason)
            log.info("cold start: %s", why_cold, extra=about(Event.MODEL_COLD_START))
            self._void_checkpoint(why_cold)
            running = self._start_cold()
        seconds = time.monotonic() - begin
        self._activation(running, way, seconds, why_cold).save()
        log.info("serving after %.2f s (%s)", seconds, way,
                 extra=about(Event.MODEL_SERVES, phase=way, seconds=seconds))  # fmt: skip
        status = f"serving ({way}, {seconds:.2f} s)"
        self._notify(f"MAINPID={running.conmon_pid}\nREADY=1\nSTATUS={status}")

    def _activation(self, running: Running, way: Way, seconds: float, why_cold: str) -> Activation:
        return Activation(
            model=self._model.name,
            port=running.port,
            payload=running.payload,
            definition=self._model.definition,
            checkpoint=self._model.checkpoint,
            gpus=self._model.gpus,
            way=way,
            seconds=seconds,
            why_cold=why_cold,
            snapshot=self._model.snapshot,
            canary=engine.has_canary(self._model),
            devices=self._model.device_names,
            image_sleep=vllm.for_image(self._model),
            park_sleep=vllm.for_park(self._model),
        )

    def stop(self) -> None:
        """End the model as ordered; by default with a checkpoint."""
        leave = take_leave_order(self._model.name)
        facts = self._container.inspect()
        if facts is None or not facts.running:
            return
        stopping_mark(self._model.name).touch()
        activation = Activation.load(self._model.name)
        if leave is Leave.CHECKPOINT and activation is not None and activation.checkpoint:
            if activation.snapshot is Snapshot.PRISTINE and self._has_pristine(facts, activation):
                self.tell("ending the server; its checkpoint is kept")
                self._container.kill()
                mark_kept(self._model.name)
                return
            self.tell("writing the checkpoint")
            if self._awake(activation) and self._checkpoint(facts, activation):
                mark_kept(self._model.name)
                return
        self.tell("stopping the container")
        self._void_checkpoint("the model was stopped without a checkpoint")
        if activation is not None:
            parking.thaw(activation)
        self._container.stop()

    def reload(self) -> None:
        """Park the model if that was ordered; else bring it back if it is parked."""
        activation = Activation.load(self._model.name)
        if activation is None:
            return
        if take_park_order(self._model.name):
            parking.park(activation)
            self.tell("parked")
        elif parking.wake(activation):
            self.tell("serving (resumed)")

    def clean_up(self) -> None:
        """After the unit's end: leave nothing behind. DiedAlone where nobody had ordered it."""
        name = self._model.name
        ordered, kept = stopping_mark(name).exists(), was_kept(name)
        started = Activation.load(name) is not None
        stopping_mark(name).unlink(missing_ok=True)
        take_leave_order(name)
        take_park_order(name)
        parking.Parked.forget(name)
        if not ordered:
            # A start that was cut short: its podman holds the container's lock for as long as
            # CRIU takes, and systemd kills what is left only after this.
            cgroup.kill_others()
        Activation.forget(name)
        conmon_pidfile(name).unlink(missing_ok=True)
        if not kept:
            self._clean_container(tidy=ordered)
        if started and not ordered:
            how = os.environ.get("EXIT_CODE", "unknown"), os.environ.get("EXIT_STATUS", "unknown")
            raise DiedAlone(f"the container ended by itself ({how[0]}, status {how[1]})")

    def _clean_container(self, *, tidy: bool) -> None:
        """Keep a container that has its checkpoint, remove any other."""
        facts = self._container.inspect()
        if facts is None:
            return
        record = Checkpoint.load(self._model.name)
        if record is not None and record.valid and facts.id == record.container_id:
            if not tidy:
                # podman may take a container whose conmon was killed for a running one still.
                self._container.halt()
            return
        log.info("removing what is left of the container %s", self._container.name)
        self._container.remove()

    def _void_checkpoint(self, reason: str) -> None:
        """The container goes, and its image with it; the record says why."""
        record = Checkpoint.load(self._model.name)
        if record is not None and not record.invalid:
            record.invalidate(reason)

    def _restore(self) -> Running:
        """Restore if there is something to restore; CannotRestore has the reason otherwise."""
        record = Checkpoint.load(self._model.name)
        if record is None:
            raise CannotRestore("there is no checkpoint")
        model = self._model
        here = identity.here(model.definition, self._container.image_id(), model.device_names)
        try:
            why_not = record.why_not(here)
        except OSError as error:
            why_not = f"its files cannot be read: {error.strerror}"
        if why_not is None and not port.free(record.port):
            why_not = f"the port {record.port} that it listens on is taken"
        if why_not is not None:
            raise CannotRestore(f"the checkpoint cannot be used: {why_not}")
        self.tell("restoring the checkpoint")
        try:
            self._container.restore(self._model.restore_timeout)
            running = self._wait_healthy(record.port, self._model.restore_timeout)
        except (CommandFailed, OSError, engine.EngineDied, engine.EngineTimeout) as error:
            raise self._not_restored(record, str(error)) from None
        try:
            vllm.take_up(record.port, record.back)
            self._check_canary(record)
            return running
        except WrongAnswer as error:
            # Perhaps it would have, had it not slept.
            record = replace(record, slept_badly=bool(record.back))
            raise self._not_restored(record, str(error)) from None

    def _not_restored(self, record: Checkpoint, why: str) -> CannotRestore:
        reason = f"the restore failed: {why}"
        log.error("%s", reason, extra=about(Event.MODEL_RESTORE_FAILED, phase="restore"))
        record.invalidate(reason)
        cgroup.kill_others()
        return CannotRestore(reason)

    def _check_canary(self, record: Checkpoint) -> None:
        """Ask what was asked when the image was taken; WrongAnswer where it says something else."""
        if not record.canary or not engine.has_canary(self._model):
            return
        answer = engine.canary(record.port)
        if answer != record.canary:
            raise WrongAnswer(
                f"its canary says {answer or 'nothing'}, before the checkpoint {record.canary}"
            )

    def _start_cold(self) -> Running:
        self.tell("starting cold")
        try:
            self._container.remove()
            listen = port.choose(self._model.name)
            self._container.run(listen)
            self.tell("starting cold: waiting for the server's health")
            return self._wait_healthy(listen, self._model.start_timeout)
        except (CommandFailed, port.NoPort, engine.EngineDied, engine.EngineTimeout) as error:
            words = self._container.last_words()
            # Here and not after the unit's end: systemd would kill podman's own clean-up half-way.
            self._container.remove()
            raise StartFailed(f"{error}: {words}" if words else str(error)) from None

    def _wait_healthy(self, listen: int, timeout: float) -> Running:
        facts = self._container.inspect()
        if facts is None or not facts.running:
            raise engine.EngineDied("the container ended at once")
        cgroup.gather(facts.pid)
        engine.wait_healthy(self._model, listen, facts.conmon_pid, timeout)
        return Running(listen, facts.conmon_pid, _payload(facts))

    def _awake(self, activation: Activation) -> bool:
        """Have it back from memory: the image of one that is parked has not been seen to work."""
        try:
            parking.wake(activation)
            return True
        except parking.CannotWake as error:
            log.error("%s; stopping the model instead", error, extra=about(Event.WAKE_FAILED))
            return False

    def _has_pristine(self, facts: Facts, activation: Activation) -> bool:
        """Whether this container has an image on disk that could be restored here again."""
        record = Checkpoint.load(self._model.name)
        if record is None or record.container_id != facts.id:
            return False
        try:
            here = identity.here(activation.definition, facts.image_id, activation.devices)
            why_not = record.why_not(here)
        except OSError as error:
            why_not = f"its files cannot be read: {error.strerror}"
        if why_not:
            log.warning("the checkpoint is of no use any more and is taken anew: %s", why_not,
                        extra=about(Event.CHECKPOINT_USELESS))  # fmt: skip
        return why_not is None

    def _checkpoint(self, facts: Facts, activation: Activation) -> bool:
        """Dump the container; False where it could not be done."""
        begin = time.monotonic()
        before = Checkpoint.load(self._model.name)
        record = Checkpoint(
            model=self._model.name,
            container_id=facts.id,
            port=activation.port,
            identity=identity.here(activation.definition, facts.image_id, activation.devices),
            taken_at=now(),
            seconds=0.0,
            size=0,
            directory=str(facts.checkpoint_directory),
        )
        # Until the dump is whole, a crash must not leave a record that vouches for it.
        record.invalidate("the checkpoint was not finished")
        try:
            answer = engine.canary(activation.port) if activation.canary else ""
            _check_room(facts.checkpoint_directory, before)
            record = replace(record, back=_let_go(activation, before))
            self._container.checkpoint()
            size = disk_usage(facts.checkpoint_directory)
            files = manifest(facts.checkpoint_directory)
            seconds = time.monotonic() - begin
            record = replace(record, seconds=seconds, size=size, manifest=files, canary=answer)
            record.save()
        except (CommandFailed, OSError, WrongAnswer, NoRoom, SleptBadly) as error:
            reason = f"the checkpoint failed: {error}"
            log.error("%s; stopping the model instead", reason,
                      extra=about(Event.CHECKPOINT_FAILED, phase="checkpoint"))  # fmt: skip
            with contextlib.suppress(OSError):
                empty_directory(facts.checkpoint_directory)
            replace(record, slept_badly=isinstance(error, SleptBadly)).invalidate(reason)
            if isinstance(error, CommandFailed) and error.status == TIMED_OUT:
                # Its CRIU still holds the server frozen, and podman waits for both.
                cgroup.kill_others()
            return False
        log.info("checkpoint written in %.2f s, %.1f MB", seconds, size / 1e6,
                 extra=about(Event.CHECKPOINT_WRITTEN, phase="checkpoint",
                             seconds=seconds))  # fmt: skip
        return True


def _payload(facts: Facts) -> str:
    """The container's own cgroup; empty where it has none that conmon is not in too."""
    payload, conmon = cgroup.of_process(facts.pid), cgroup.of_process(facts.conmon_pid)
    unit = cgroup.own_unit()
    if unit is None or payload is None or conmon is None or unit not in payload.parents:
        return ""
    return "" if payload == conmon or payload in conmon.parents else str(payload)


def _let_go(activation: Activation, before: Checkpoint | None) -> tuple[str, ...]:
    """Have the engine let go of what the image need not hold; the requests that undo it."""
    if before is not None and before.slept_badly:
        log.warning("its last image did not come back from its sleep: this one holds everything")
        return ()
    nap = vllm.nap(activation.port, activation.image_sleep)
    if activation.image_sleep is not Sleep.OFF and not nap.out:
        log.warning("vLLM's sleep mode is off: the image will hold its KV cache and weights")
    try:
        vllm.let_go(activation.port, nap)
    except WrongAnswer as error:
        raise SleptBadly(f"the engine does not let go: {error}") from None
    return nap.back


def _check_room(directory: Path, before: Checkpoint | None) -> None:
    """NoRoom where an image as large as the last one will not fit; that one is removed first."""
    if before is None:
        return
    free = shutil.disk_usage(directory if directory.is_dir() else directory.parent).free
    free += disk_usage(directory)
    if free < before.size:
        raise NoRoom(
            f"the disk of {directory} has room for {free / 1e9:.1f} GB,"
            f" and the last image took {before.size / 1e9:.1f} GB"
        )
