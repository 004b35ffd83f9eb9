# SPDX-License-Identifier: MIT
"""The life of one model's unit: ExecStart, ExecStop and ExecStopPost.

Start: restore, else a cold start. Stop: checkpoint, else end it and say so. After the stop:
nothing that holds the GPU, a port or half a container is left, whoever died and when.
"""

import logging
import os
import time
from pathlib import Path

import sdnotify

from ..config import ModelConfig
from . import engine, port
from .activation import Activation, Leave, Way, conmon_pidfile, stopping_mark, take_leave_order
from .checkpoint import Checkpoint, Identity, disk_usage, now
from .container import Container, Facts, criu_version
from .process import CommandFailed

log = logging.getLogger("llmux-model")

# A restored server answers health at once, or it never will.
RESTORE_HEALTH_TIMEOUT = 60.0
# What podman itself may take on top of the configured time for the server's start.
PODMAN_MARGIN = 600.0


class StartFailed(Exception):
    """Neither restore nor cold start brought the model up; one line says why."""


class Lifecycle:
    """One model, as its unit's commands see it."""

    def __init__(self, model: ModelConfig):
        self._model = model
        self._container = Container(model)
        self._notify = sdnotify.SystemdNotifier().notify

    def start(self) -> None:
        """Bring the model to health and hand the unit's main process over to conmon."""
        begin = time.monotonic()
        limit = self._model.start_timeout + PODMAN_MARGIN
        self._notify(f"EXTEND_TIMEOUT_USEC={int(limit * 1e6)}")
        stopping_mark(self._model.name).unlink(missing_ok=True)
        why_cold = self._restore()
        way, listen, facts = Way.RESTORE, 0, None
        if why_cold is None:
            record = Checkpoint.load(self._model.name)
            facts = self._container.inspect()
            listen = record.port if record else 0
        else:
            log.info("cold start: %s", why_cold)
            way = Way.COLD
            listen, facts = self._start_cold()
        if facts is None or not facts.running:
            raise StartFailed("the container ended at once")
        seconds = time.monotonic() - begin
        Activation(self._model.name, listen, way, seconds, why_cold or "").save()
        log.info("serving after %.2f s (%s)", seconds, way)
        status = f"serving ({way}, {seconds:.2f} s)"
        self._notify(f"MAINPID={facts.conmon_pid}\nREADY=1\nSTATUS={status}")

    def stop(self) -> None:
        """End the model as ordered; by default with a checkpoint."""
        leave = take_leave_order(self._model.name)
        facts = self._container.inspect()
        if facts is None or not facts.running:
            return
        stopping_mark(self._model.name).touch()
        if leave is Leave.CHECKPOINT and self._model.checkpoint:
            self._notify("STATUS=writing the checkpoint")
            if self._checkpoint(facts):
                return
        self._notify("STATUS=stopping the container")
        self._container.stop()

    def clean_up(self) -> bool:
        """After the unit's end: leave nothing behind. False where the server died by itself."""
        name = self._model.name
        ordered = stopping_mark(name).exists()
        started = Activation.load(name) is not None
        stopping_mark(name).unlink(missing_ok=True)
        Activation.forget(name)
        conmon_pidfile(name).unlink(missing_ok=True)
        record = Checkpoint.load(name)
        facts = self._container.inspect()
        keep = record is not None and facts is not None and record.valid
        keep = keep and record is not None and facts is not None and facts.id == record.container_id
        if facts is not None and (facts.running or not keep):
            log.info("removing what is left of the container %s", self._container.name)
            self._container.remove()
            if record is not None and not record.invalid:
                record.invalidate("its container was killed")
        if ordered or not started:
            return True
        log.error(
            "the container ended by itself (%s, status %s)",
            os.environ.get("EXIT_CODE", "unknown"),
            os.environ.get("EXIT_STATUS", "unknown"),
        )
        return False

    def _restore(self) -> str | None:
        """Restore if there is something to restore; else the reason for a cold start."""
        record = Checkpoint.load(self._model.name)
        if record is None:
            return "there is no checkpoint"
        why_not = record.why_not(self._identity())
        if why_not is None and not port.free(record.port):
            why_not = f"the port {record.port} that it listens on is taken"
        if why_not is not None:
            return f"the checkpoint cannot be used: {why_not}"
        self._notify("STATUS=restoring the checkpoint")
        try:
            self._container.restore()
            facts = self._container.inspect()
            if facts is None or not facts.running:
                raise engine.EngineDied("the container ended at once")
            engine.wait_healthy(self._model, record.port, facts.conmon_pid, RESTORE_HEALTH_TIMEOUT)
        except (CommandFailed, engine.EngineDied, engine.EngineTimeout) as error:
            reason = f"the restore failed: {_line(error)}"
            log.warning("%s", reason)
            record.invalidate(reason)
            return reason
        return None

    def _start_cold(self) -> tuple[int, Facts | None]:
        self._notify("STATUS=starting cold")
        try:
            self._container.remove()
            listen = port.choose(self._model.name)
            self._container.run(listen)
            facts = self._container.inspect()
            if facts is None or not facts.running:
                raise engine.EngineDied("the container ended at once")
            self._notify("STATUS=starting cold: waiting for the server's health")
            engine.wait_healthy(self._model, listen, facts.conmon_pid, self._model.start_timeout)
        except (CommandFailed, port.NoPort, engine.EngineDied, engine.EngineTimeout) as error:
            raise StartFailed(_line(error)) from None
        return listen, facts

    def _checkpoint(self, facts: Facts) -> bool:
        """Dump the container; False where it could not be done, and then nothing of it is left."""
        begin = time.monotonic()
        activation = Activation.load(self._model.name)
        record = Checkpoint(
            model=self._model.name,
            container_id=facts.id,
            port=activation.port if activation else 0,
            identity=self._identity(facts.image_id),
            taken_at=now(),
            seconds=0.0,
            size=0,
            directory=str(facts.checkpoint_directory),
        )
        # Until the dump is whole, a crash must not leave a record that vouches for it.
        record.invalidate("the checkpoint was not finished")
        try:
            self._container.checkpoint()
        except (CommandFailed, OSError) as error:
            reason = f"the checkpoint failed: {_line(error)}"
            log.error("%s; stopping the model instead", reason)
            record.invalidate(reason)
            return False
        size = disk_usage(facts.checkpoint_directory)
        seconds = time.monotonic() - begin
        whole = Checkpoint(**{**vars(record), "seconds": seconds, "size": size, "invalid": ""})
        whole.save()
        log.info("checkpoint written in %.2f s, %.1f MB", seconds, size / 1e6)
        return True

    def _identity(self, image_id: str | None = None) -> Identity:
        return Identity(
            definition=self._model.definition,
            image_id=image_id if image_id is not None else self._container.image_id(),
            machine_id=_machine_id(),
            kernel=os.uname().release,
            criu=criu_version(),
        )


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _line(error: Exception) -> str:
    return error.reason if isinstance(error, CommandFailed) else str(error)
