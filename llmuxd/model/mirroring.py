# SPDX-License-Identifier: MIT
"""A model that another unit of systemd serves, a native ollama.service say.

The model's own unit is its mirror: it starts that unit and stops it, parks it, and ends when that
one's main process does. What is in that unit, and how it is run, is its own business.
"""

import os

from .. import loggers
from ..config import ModelConfig
from . import canary, cgroup, engine, mirrored, parking
from .activation import (
    Activation,
    Way,
    one_at_a_time,
    socket_path,
    stopping_mark,
    take_leave_order,
    take_park_order,
)
from .attending import Attending, DiedAlone
from .moves import Direction, Stopwatch
from .notify import notify
from .process import CommandFailed, run
from .starting import StartFailed

log = loggers.named("llmux-model")

SHOW_LIMIT = 30.0
# Units have limits of their own; this is for one that has none.
STOP_LIMIT = 1100.0
# What systemctl may take on top of the configured time.
MARGIN = 60.0


class Mirror(Attending):
    """`model` need not be complete to stop: which unit it is was written down at the start."""

    def __init__(self, model: ModelConfig):
        super().__init__(model.name)
        self._model = model

    def start(self) -> int:
        """Start the unit, which may run already."""
        watch = Stopwatch(Way.COLD)
        model = self._model
        notify(f"EXTEND_TIMEOUT_USEC={int((2 * model.start_timeout + MARGIN) * 1e6)}")
        self._begin(model.gpus)
        with one_at_a_time(model.name):
            mirrored.note(model.name, model.unit)
            main = self._start(watch)
            payload = cgroup.of_unit(model.unit)
        move = watch.move()
        Activation(
            model=model.name,
            port=model.port,
            payload=str(payload) if payload else "",
            definition=model.definition,
            checkpoint=False,
            gpus=model.gpus,
            way=Way.COLD,
            seconds=move.seconds,
            why_cold=f"{model.unit} is no container",
            canary=canary.is_asked(model),
            canary_prompt=model.canary_prompt,
            question=canary.question_of(model),
            devices=model.device_names,
            unit=model.unit,
        ).save()
        move.save(model.name, Direction.IN)
        self._listen()
        # This very process is the unit's main one.
        notify(f"READY=1\nSTATUS=serving ({model.unit}, {move.seconds:.2f} s)")
        return main

    def _start(self, watch: Stopwatch) -> int:
        """The main process of the unit, which is healthy."""
        model = self._model
        self.tell(f"starting {model.unit}")
        try:
            with watch.part("start"):
                run(["systemctl", "start", "--", model.unit], model.start_timeout + MARGIN)
                shown = run(["systemctl", "show", "-P", "MainPID", "--", model.unit], SHOW_LIMIT)
            main = int(shown)
            if not main:
                raise StartFailed(f"{model.unit} has no main process that could be watched")
            self.tell(f"waiting for the health of {model.unit}")
            with watch.part("health"):
                engine.wait_healthy(model, model.port, main, model.start_timeout)
        except engine.EngineDied:
            raise StartFailed(f"{model.unit} ended before it was healthy") from None
        except (CommandFailed, engine.EngineTimeout) as error:
            raise StartFailed(str(error)) from None
        return main

    def stop(self) -> None:
        """Stop it: there is nothing that could be kept."""
        if "MAINPID" not in os.environ:
            # Nobody's order: the helper has seen the other unit end, and has ended too.
            return
        name, watch = self._name, Stopwatch("stop")
        take_leave_order(name)
        activation = Activation.load(name)
        stopping_mark(name).touch()
        with one_at_a_time(name):
            if activation is not None:
                parking.thaw(activation)
            self.tell("stopping the unit")
            with watch.part("stop"):
                self._stop_unit()
            watch.move().save(name, Direction.OUT)

    def clean_up(self) -> None:
        """However this unit came to its end, the other one does not run on alone."""
        name = self._name
        ordered = stopping_mark(name).exists()
        activation = Activation.load(name)
        unit = mirrored.unit_of(name)
        if activation is not None:
            # Its helper was killed while it was parked, perhaps.
            parking.thaw(activation)
        take_leave_order(name)
        take_park_order(name)
        parking.Parked.forget(name)
        Activation.forget(name)
        for path in (stopping_mark(name), socket_path(name)):
            path.unlink(missing_ok=True)
        self._stop_unit()
        mirrored.forget(name)
        if activation is not None and not ordered:
            how = os.environ.get("EXIT_CODE", "unknown"), os.environ.get("EXIT_STATUS", "unknown")
            raise DiedAlone(f"{unit} ended by itself (its helper: {how[0]}, status {how[1]})")

    def _stop_unit(self) -> None:
        unit = mirrored.unit_of(self._name)
        if unit:
            run(["systemctl", "stop", "--", unit], STOP_LIMIT)
