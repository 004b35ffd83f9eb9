# SPDX-License-Identifier: MIT
"""What a model's unit does, and in the same way for every model: it parks it and brings it back."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

from .. import __version__, hold, loggers, run_files
from ..config import Sleep
from ..events import Event, about
from . import parking, resident
from .activation import (
    PARKED,
    Activation,
    Way,
    note_place,
    one_at_a_time,
    stopping_mark,
    take_park_order,
    was_kept,
)
from .handing import DONE
from .moves import Direction, Stopwatch
from .notify import notify

# Not imported in fact: a start would wait for it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

log = loggers.named("llmux-model")


class DiedAlone(Exception):
    """What the unit watches ended without an order."""


class Attending(ABC):
    """One model, as its unit's commands see it. `was_cold`: its container was started anew."""

    def __init__(self, name: str):
        self._name = name
        self.was_cold = False
        self._listening: socket.socket | None = None

    @abstractmethod
    def start(self) -> int:
        """Bring the model to health; the process with which it ends."""

    @abstractmethod
    def stop(self) -> None:
        """End the model as ordered."""

    @abstractmethod
    def clean_up(self) -> None:
        """After the unit's end: leave nothing behind. DiedAlone where nobody had ordered it."""

    def tell(self, text: str) -> None:
        """What `systemctl status` shows of the unit."""
        notify(f"STATUS={text}")

    def reload(self) -> None:
        """Park the model if that was ordered; else bring it back if it is parked."""
        activation = Activation.load(self._name)
        if activation is None:
            return
        order = take_park_order(self._name)
        if order is not None:
            self._park(activation, order.sleep)
        else:
            self._wake(activation)

    def stay(self, watched: int, meanwhile: Callable[[], None]) -> None:
        """After the start: park, wake and stop the model when asked, for as long as it runs.

        `meanwhile` is done beside that, once. After a stop that kept an image nothing is left for
        the unit's clean-up.
        """
        assert self._listening is not None, "it was not started"
        for name in parking.LATER:
            importlib.import_module(f".{name}", __package__)
        resident.apart(meanwhile, self._listening)
        resident.stay(self._name, self._listening, self._watched(watched), self._answer)
        if was_kept(self._name):
            hold.forget(self._name)
            run_files.leave_clean(self._name)

    def _listen(self) -> None:
        """Before it is known to serve: whoever hears of that may ask at once."""
        self._listening = resident.listen(self._name)

    def _watched(self, process: int) -> resident.Watched:
        """What ends with the process that `start` told."""
        return resident.Watched(process)

    def _stop_when_asked(self) -> bool:
        """Stop it by the helper that stayed; False where its ExecStop has to do it."""
        return False

    def _answer(self, verb: str) -> str:
        """Do what llmuxd asks; `done`, or why not. `park 2` lets go of other than usual.

        `stop VERSION` is ExecStop's, of that release.
        """
        if verb == f"stop {__version__}":
            return DONE if self._stop_when_asked() else "failed: it is for ExecStop"
        activation = Activation.load(self._name)
        if activation is None:
            return "failed: it does not run"
        try:
            match verb.split():
                case ["park"]:
                    self._park(activation)
                case ["park", sleep] if sleep in Sleep.__members__.values():
                    self._park(activation, Sleep(sleep))
                case ["wake"]:
                    self._wake(activation)
                case _:
                    return f"failed: there is no {verb!r}"
        except parking.CannotPark as error:
            log.error("%s", error, extra=about(Event.PARK_FAILED, phase=verb))
            return f"failed: {error}"
        except parking.CannotWake as error:
            log.error("%s", error, extra=about(Event.WAKE_FAILED, phase=verb))
            return f"failed: {error}"
        return DONE

    def _begin(self, gpus: Sequence[int]) -> None:
        """It starts, on these GPUs; what an earlier run was told counts no more."""
        stopping_mark(self._name).unlink(missing_ok=True)
        note_place(self._name, gpus)

    def _park(self, activation: Activation, sleep: Sleep | None = None) -> None:
        if sleep is not None:
            activation = replace(activation, park_sleep=sleep)
        with one_at_a_time(self._name):
            watch = Stopwatch("park")
            parking.park(activation, watch, trial=sleep is not None)
            watch.move().save(self._name, Direction.OUT)
            self.tell(PARKED)

    def _wake(self, activation: Activation) -> None:
        with one_at_a_time(self._name):
            watch = Stopwatch("resume")
            if parking.wake(activation, watch):
                move = watch.move()
                replace(activation, way=Way.RESUME, seconds=move.seconds).save()
                move.save(self._name, Direction.IN)
                self.tell("serving (resumed)")
