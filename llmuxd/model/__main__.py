# SPDX-License-Identifier: MIT
"""llmux-model VERB INSTANCE: the commands of llmux-model@.service."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .. import accepted, config, loggers, names, stored
from ..errors import LlmuxError, NoSuchModel, StateNotKept, StateTooNew
from ..events import Event, about
from . import keeping, mirrored, parking, shortage, waiting
from .attending import Attending, DiedAlone
from .lifecycle import Lifecycle
from .notify import notify
from .process import CommandFailed
from .starting import StartFailed

log = loggers.named("llmux-model")

VERBS = ("start", "stop", "reload", "clean-up")


@dataclass
class Arguments:
    """The command line. `instance` is the unit's, as systemd-escape writes it."""

    verb: str
    instance: str
    config: Path | None = None
    verbose: bool = False


def main() -> int:
    """Entry point; the exit status is 0, 1 where the model failed, 2 where it is not known."""
    arguments = _arguments()
    if arguments.verbose:
        _set_up_log(verbose=True)
    else:
        loggers.before_first(_set_up_log)
    try:
        name = names.unescape(arguments.instance)
        # Before the definition is read: it may be another by then.
        if arguments.verb == "start" and not waiting.may_start(name):
            return waiting.withdraw(name)
        model = _model(name, arguments.config, arguments.verb)
    except LlmuxError as error:
        # The status text stays with the failed unit: systemctl status and llmuxd show it.
        notify(f"STATUS=failed: {error}")
        log.error("%s", error)
        return 2
    return _run(arguments.verb, _attending(model, arguments.config), arguments.config)


def _set_up_log(verbose: bool = False) -> None:
    from .. import journal

    journal.set_up(verbose)


def _arguments() -> Arguments:
    match sys.argv[1:]:
        case [verb, "--", instance] if verb in VERBS:
            return Arguments(verb, instance)
        case _:
            pass
    # A model's unit, which asks as above, would wait for it.
    import argparse

    parser = argparse.ArgumentParser(prog="llmux-model", description=__doc__)
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("instance", help="the unit's instance (%%i), as systemd-escape writes it")
    parser.add_argument("-c", "--config", type=Path, default=None)
    parser.add_argument("-v", "--verbose", action="store_true")
    return Arguments(**vars(parser.parse_args()))


def _attending(model: config.ModelConfig, path: Path | None) -> Attending:
    """Another unit's mirror where it is, or was started as, one."""
    if model.unit or (not model.image and mirrored.unit_of(model.name)):
        from .mirroring import Mirror

        return Mirror(model)
    try:
        stored.bring_up_to_date()
    except (StateTooNew, StateNotKept) as error:
        # Not of a start: that has come to its end by then.
        log.warning("%s", error)
        from .bystander import Bystander

        return Bystander(model)
    return Lifecycle(model, lambda: _limits(path))


def _model(name: str, path: Path | None, verb: str) -> config.ModelConfig:
    """The definition of `name`; a stop needs none, and must work when the file is broken."""
    if verb != "start":
        return config.ModelConfig(name=name, image="")
    stored.bring_up_to_date()
    known = None if path else accepted.model(name)
    if known is not None:
        return known
    found = _load(path)
    if name not in found.models:
        raise NoSuchModel(f"{found.path} has no model {name!r}")
    return found.models[name]


def _load(path: Path | None) -> config.Config:
    # A reader of YAML may lie elsewhere than this package.
    _find_packages()
    return config.load(path) if path else accepted.load()


@cache
def _find_packages() -> None:
    """What Python has left out at its start (packaging/llmux-model.in)."""
    if sys.flags.no_site:
        import site

        site.main()


def _limits(path: Path | None) -> keeping.Limits:
    """Those of the file; where it is broken, those that hold without one."""
    try:
        return keeping.Limits.of(_load(path))
    except LlmuxError as error:
        log.warning("the limits of images in llmux.yaml are not known: %s", error)
        return keeping.Limits()


def _start(attending: Attending, path: Path | None) -> None:
    watched = attending.start()
    attending.stay(watched, lambda: _sweep(attending, path))


def _sweep(attending: Attending, path: Path | None) -> None:
    """Nobody waits any more."""
    from . import sweeping

    try:
        sweeping.sweep(_load(path).models)
    except LlmuxError as error:
        log.info("no image was looked for that is of no use: %s", error)
    if attending.was_cold:
        # It took its time anyway.
        sweeping.sweep_networks()


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
    except (StartFailed, DiedAlone, CommandFailed, parking.CannotPark, parking.CannotWake) as error:
        _tell_failure(verb, attending, error, str(error))
        return 1
    except OSError as error:
        missing = shortage.of(str(error))
        if not missing:
            raise
        _tell_failure(verb, attending, error, f"{error.strerror}: {missing}")
        return 1
    return 0


def _tell_failure(verb: str, attending: Attending, error: Exception, text: str) -> None:
    if verb == "start" or isinstance(error, DiedAlone):
        attending.tell(f"failed: {text}")
    log.error("%s", text, extra=about(_event(error), phase=verb))


def _event(error: Exception) -> Event | None:
    match error:
        case StartFailed():
            return Event.MODEL_START_FAILED
        case DiedAlone():
            return Event.MODEL_ENDED
        case parking.CannotPark():
            return Event.PARK_FAILED
        case parking.CannotWake():
            return Event.WAKE_FAILED
        case _:
            return None


if __name__ == "__main__":
    sys.exit(main())
