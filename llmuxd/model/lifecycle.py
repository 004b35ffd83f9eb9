# SPDX-License-Identifier: MIT
"""The life of one model's unit: ExecStart, ExecStop and ExecStopPost.

Start: restore, else a cold start. Stop: checkpoint, else end it and say so. After the stop:
nothing that holds the GPU, a port or half a container is left, whoever died and when.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .. import loggers, run_files, stored
from ..config import ModelConfig, Snapshot, Tier
from ..errors import StateTooNew
from ..events import Event, about
from . import (
    canary,
    cgroup,
    freezer,
    identity,
    imaging,
    keeping,
    parking,
    place,
    resident,
    tuning,
    vllm,
)
from .activation import (
    RELEASED,
    Activation,
    Leave,
    LeaveOrder,
    Way,
    is_parked,
    leave_order,
    mark_kept,
    noted_place,
    one_at_a_time,
    stopping_mark,
    was_kept,
)
from .attending import Attending, DiedAlone
from .checkpoint import Checkpoint, mark_used, settle
from .container import Container, Facts
from .moves import Direction, Stopwatch
from .notify import notify
from .process import CommandFailed
from .starting import Running, Start, void_checkpoint

log = loggers.named("llmux-model")

# What podman itself may take on top of the configured time for the server's start.
PODMAN_MARGIN = 600.0


class Lifecycle(Attending):
    """A model in a container. `limits` are asked for before a dump."""

    def __init__(
        self, model: ModelConfig, limits: Callable[[], keeping.Limits] = lambda: keeping.Limits()
    ):
        super().__init__(model.name)
        self._model = model
        self._container = Container(model)
        self._limits = limits
        self._facts: Facts | None = None
        self._first = 0

    def start(self) -> int:
        """Bring the model to health and hand the unit's main process over to conmon."""
        watch = Stopwatch("start")
        limit = self._model.start_timeout + 2 * self._model.restore_timeout + PODMAN_MARGIN
        notify(f"EXTEND_TIMEOUT_USEC={int(limit * 1e6)}")
        # Who kills all of a unit in a certain moment kills its clean-up too (dot_control.py).
        unclean = noted_place(self._model.name) is not None
        if unclean:
            # Killed from here on, the next one has to know it too.
            run_files.forget(self._model.name, keep=run_files.PLACE)
        self._begin(self._model.gpus)
        with one_at_a_time(self._model.name):
            if unclean:
                log.warning("the run before was not cleaned up: that is done now")
                cgroup.kill_others()
                self._clean_container()
            running = Start(self._model, self._container, self.tell, watch).run()
        move = watch.move()
        self._activation(running, move.seconds).save()
        move.save(self._model.name, Direction.IN)
        mark_used(self._model.name)
        self._facts = self._known(running)
        self._first = running.pid
        self._listen()
        status = f"serving ({move.way}, {move.seconds:.2f} s)"
        notify(f"MAINPID={running.conmon_pid}\nREADY=1\nSTATUS={status}")
        self.was_cold = bool(running.why_cold)
        return running.conmon_pid

    def _known(self, running: Running) -> Facts | None:
        """What podman would say of the container that was restored; it needs 0.1 s for that."""
        record = None if running.why_cold else Checkpoint.load(self._model.name)
        if record is None:
            return None
        return Facts(
            id=record.container_id,
            image_id=record.identity.image_id,
            running=True,
            pid=running.pid,
            conmon_pid=running.conmon_pid,
            userdata=Path(record.directory).parent,
        )

    def _activation(self, running: Running, seconds: float) -> Activation:
        here = self._identity(running)
        tuned = None if here is None else self._tuning(here)
        return Activation(
            model=self._model.name,
            port=running.port,
            payload=running.payload,
            definition=self._model.definition,
            checkpoint=self._model.checkpoint,
            gpus=self._model.gpus,
            way=Way.COLD if running.why_cold else Way.RESTORE,
            seconds=seconds,
            why_cold=running.why_cold,
            snapshot=self._model.snapshot,
            checkpoint_dir=self._model.checkpoint_dir,
            canary=canary.is_asked(self._model),
            canary_prompt=self._model.canary_prompt,
            question=canary.question_of(self._model),
            devices=self._model.device_names,
            image_sleep=tuning.usual(self._model, Tier.CHECKPOINT, tuned).sleep,
            park_sleep=tuning.usual(self._model, Tier.PARK, tuned).sleep,
            identity=here,
        )

    def _tuning(self, here: identity.Identity) -> tuning.Tuning | None:
        """What was measured of it, where that holds."""
        found = tuning.Tuning.load(self._model.name)
        why_not = found.why_not(here) if found is not None else ""
        if why_not:
            log.info("what was measured of its letting go is not used: %s", why_not)
        return None if why_not else found

    def _identity(self, running: Running) -> identity.Identity | None:
        """That of an image that would be taken of it, where it matters what that holds."""
        if not vllm.lets_go(self._model):
            return None
        if running.identity is not None:
            return running.identity
        try:
            image = self._container.image_id()
        except CommandFailed as error:
            log.warning("which container image it has is not known: %s", error)
            return None
        return identity.here(self._model.definition, image, self._model.device_names)

    def stop(self) -> None:
        """By default with a checkpoint."""
        order = leave_order(self._model.name)
        watch = Stopwatch(order.leave)
        with watch.part("inspect"):
            facts = self._running()
        if facts is None:
            return
        stopping_mark(self._model.name).touch()
        with one_at_a_time(self._model.name):
            self._stop(facts, order, watch)

    def _watched(self, process: int) -> resident.Watched:
        return resident.Watched(process, self._bound, self._end_rest)

    def _bound(self) -> list[int]:
        """The processes of one that waits in memory, and whom nobody is about to end."""
        activation, name = Activation.load(self._model.name), self._model.name
        if activation is None or not activation.payload:
            return []
        if not is_parked(name) or stopping_mark(name).exists():
            return []
        return cgroup.family(self._first, Path(activation.payload))

    def _end_rest(self) -> None:
        """A process of it is gone: what is left is of no use, but to whoever lacks the memory."""
        activation = Activation.load(self._model.name)
        if activation is not None and self._bound():
            log.error("a process of it was killed while it was parked; the rest of it is ended")
            freezer.kill(Path(activation.payload))

    def _stop_when_asked(self) -> bool:
        try:
            # A newer release, which was put back to this one while the model ran, has its own way.
            stored.form()
            self.stop()
        except (StateTooNew, CommandFailed, OSError) as error:
            # A full disk, say: what is missing ExecStop tells, if it fails of that too.
            log.error("%s", error, extra=about(phase="stop"))
            return False
        return True

    def _running(self) -> Facts | None:
        """What there is to be stopped; None where the container has ended."""
        if self._facts is not None and self._container.pids() == (
            self._facts.pid,
            self._facts.conmon_pid,
        ):
            return self._facts
        facts = self._container.inspect()
        return facts if facts is not None and facts.running else None

    def _stop(self, facts: Facts, order: LeaveOrder, watch: Stopwatch) -> None:
        activation = Activation.load(self._model.name)
        kept = False
        if order.leave is Leave.CHECKPOINT and activation is not None and activation.checkpoint:
            kept = self._leave_image(facts, activation, order, watch)
        elif order.leave is Leave.END and activation is not None:
            why = "no checkpoint is written, as memory is short and others have its GPU"
            kept = self._leave_older(facts, activation, watch, why, Event.MEMORY_SHORT)
        if kept:
            mark_kept(self._model.name)
        else:
            self._end(activation, watch)
        watch.move().save(self._model.name, Direction.OUT)

    def _leave_image(
        self, facts: Facts, activation: Activation, order: LeaveOrder, watch: Stopwatch
    ) -> bool:
        """End the model with an image of it on disk; False where there is none, and it runs."""
        trial = order.sleep is not None
        if order.sleep is not None:
            activation = replace(activation, image_sleep=order.sleep)
        with watch.part("look"):
            pristine = activation.snapshot is Snapshot.PRISTINE
            whole = pristine and not trial and imaging.is_whole(facts, activation)
        if whole:
            self.tell("ending the server; its checkpoint is kept")
            watch.way = "kill"
            with watch.part("kill"):
                if activation.payload and freezer.kill(Path(activation.payload)):
                    self.tell(RELEASED)
            with watch.part("tidy"):
                self._container.kill()
            mark_used(self._model.name)
            return True
        self.tell("writing the checkpoint")
        if not self._awake(activation, watch):
            return self._fall_back(facts, activation, watch)
        directory = facts.checkpoint_directory
        room = keeping.Room(self._model.name, directory, self._limits(), order.wanted)
        written = imaging.write(self._container, facts, activation, watch, self.tell, room, trial)
        if written is imaging.Written.OLD:
            self._halt(watch)
        return written is not imaging.Written.NOTHING

    def _fall_back(self, facts: Facts, activation: Activation, watch: Stopwatch) -> bool:
        """End what does not come back, to its live image from before; False where it has none."""
        if activation.snapshot is not Snapshot.LIVE:
            return False
        return self._leave_older(facts, activation, watch, "it did not wake", Event.WAKE_FAILED)

    def _leave_older(
        self, facts: Facts, activation: Activation, watch: Stopwatch, why: str, event: Event
    ) -> bool:
        """End the model with the image that it has from before; False where it has none."""
        if not imaging.is_whole(facts, activation):
            return False
        log.warning("%s: it goes back to what it was at its last checkpoint", why,
                    extra=about(event, phase="leaving"))  # fmt: skip
        parking.thaw(activation)
        self._halt(watch)
        mark_used(self._model.name)
        return True

    def _halt(self, watch: Stopwatch) -> None:
        log.warning("ending the server; the checkpoint before this one is kept")
        watch.way = "kill"
        with watch.part("kill"):
            self._container.halt()

    def _end(self, activation: Activation | None, watch: Stopwatch) -> None:
        """End the model with nothing left of it."""
        self.tell("stopping the container")
        log.info("stopping the model")
        void_checkpoint(self._model.name, "the model was stopped without a checkpoint")
        watch.way = Leave.STOP
        if activation is not None:
            parking.thaw(activation)
        with watch.part("stop"):
            self._container.stop()

    def clean_up(self) -> None:
        """What an ordered stop left with a good image is kept, and nothing else."""
        name = self._model.name
        ordered, kept = stopping_mark(name).exists(), was_kept(name)
        started = Activation.load(name) is not None
        if not kept:
            # The podman of a start or a dump that was cut short holds the container's lock for as
            # long as CRIU takes, and systemd kills what is left only after this.
            cgroup.kill_others()
            # Killed from here on, the next start knows that there is something to be cleaned.
            run_files.forget(name, keep=run_files.PLACE)
            self._clean_container()
        run_files.forget(name)
        if started and not ordered:
            how = os.environ.get("EXIT_CODE", "unknown"), os.environ.get("EXIT_STATUS", "unknown")
            raise DiedAlone(f"the container ended by itself ({how[0]}, status {how[1]})")

    def _clean_container(self) -> None:
        """Keep a container that has its checkpoint, remove any other."""
        facts = self._container.inspect()
        if facts is None:
            # A start that was cut short may have come no further than to this.
            self._container.remove_network()
            return
        record = Checkpoint.load(self._model.name)
        settle(facts.checkpoint_directory, record)
        if record is not None and record.valid and facts.id == record.container_id:
            # podman may take a container whose conmon was killed for a running one still.
            self._container.halt()
            return
        log.info("removing what is left of the container %s", self._container.name)
        self._container.remove()
        if record is not None:
            place.remove(record)

    def _awake(self, activation: Activation, watch: Stopwatch) -> bool:
        """Have it back from memory: the image of one that is parked has not been seen to work."""
        try:
            parking.wake(activation, watch)
            return True
        except parking.CannotWake as error:
            log.error("no checkpoint is written, for that needs its GPU: %s", error,
                      extra=about(Event.WAKE_FAILED))  # fmt: skip
            return False
