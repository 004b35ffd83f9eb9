# SPDX-License-Identifier: MIT
"""llmux-model VERB INSTANCE: the commands of llmux-model@.service."""

import argparse
import logging
import sys
from pathlib import Path

import sdnotify

from .. import accepted, config, journal, names, stored
from ..errors import LlmuxError, NoSuchModel, StateNotKept, StateTooNew
from ..events import Event, about
from . import mirrored, sweeping
from .attending import Attending, DiedAlone
from .bystander import Bystander
from .keeping import Limits
from .lifecycle import Lifecycle
from .mirroring import Mirror
from .parking import CannotPark, CannotWake
from .process import CommandFailed
from .starting import StartFailed

log = logging.getLogger("llmux-model")

_EVENTS: dict[type[Exception], Event] = {
    StartFailed: Event.MODEL_START_FAILED,
    DiedAlone: Event.MODEL_ENDED,
    CannotPark: Event.PARK_FAILED,
    CannotWake: Event.WAKE_FAILED,
}


def main() -> int:
    """Entry point; the exit status is 0, 1 where the model failed, 2 where it is not known."""
    parser = argparse.ArgumentParser(prog="llmux-model", description=__doc__)
    parser.add_argument("verb", choices=["start", "stop", "reload", "clean-up"])
    parser.add_argument("instance", help="the unit's instance (%%i), as systemd-escape writes it")
    parser.add_argument("-c", "--config", type=Path, default=None)
    parser.add_argument("-v", "--verbose", action="store_true")
    arguments = parser.parse_args()
    journal.set_up(verbose=arguments.verbose)
    try:
        name = names.unescape(arguments.instance)
        model = _model(name, arguments.config, arguments.verb)
    except LlmuxError as error:
        # The status text stays with the failed unit: systemctl status and llmuxd show it.
        sdnotify.SystemdNotifier().notify(f"STATUS=failed: {error}")
        log.error("%s", error)
        return 2
    return _run(arguments.verb, _attending(model, arguments.config), arguments.config)


def _attending(model: config.ModelConfig, path: Path | None) -> Attending:
    """Another unit's mirror where it is, or was started as, one."""
    if model.unit or (not model.image and mirrored.unit_of(model.name)):
        return Mirror(model)
    try:
        stored.bring_up_to_date()
    except (StateTooNew, StateNotKept) as error:
        # Not of a start: that has come to its end by then.
        log.warning("%s", error)
        return Bystander(model)
    return Lifecycle(model, lambda: _limits(path))


def _model(name: str, path: Path | None, verb: str) -> config.ModelConfig:
    """The definition of `name`; a stop needs none, and must work when the file is broken."""
    if verb != "start":
        return config.ModelConfig(name=name, image="")
    stored.bring_up_to_date()
    found = _load(path)
    if name not in found.models:
        raise NoSuchModel(f"{found.path} has no model {name!r}")
    return found.models[name]


def _load(path: Path | None) -> config.Config:
    return config.load(path) if path else accepted.load()


def _limits(path: Path | None) -> Limits:
    """Those of the file; where it is broken, those that hold without one."""
    try:
        return Limits.of(_load(path))
    except LlmuxError as error:
        log.warning("the limits of images in llmux.yaml are not known: %s", error)
        return Limits()


def _start(attending: Attending, path: Path | None) -> None:
    watched = attending.start()
    # Nobody waits any more, but for the next park.
    try:
        sweeping.sweep(_load(path).models)
    except LlmuxError as error:
        log.info("no image was looked for that is of no use: %s", error)
    if attending.was_cold:
        # It took its time anyway.
        sweeping.sweep_networks()
    attending.stay(watched)


def _run(verb: str, attending: Attending, path: Path | None) -> int:
    try:
        match verb:
            case "start":
                _start(attending, path)
            case "stop":
                attending.stop()
            case "reload":
                attending.reload()
            case _:
                attending.clean_up()
    except (StartFailed, DiedAlone, CommandFailed, CannotPark, CannotWake) as error:
        if verb == "start" or isinstance(error, DiedAlone):
            attending.tell(f"failed: {error}")
        log.error("%s", error, extra=about(_EVENTS.get(type(error)), phase=verb))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
