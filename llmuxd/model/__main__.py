# SPDX-License-Identifier: MIT
"""llmux-model VERB INSTANCE: the commands of llmux-model@.service."""

import argparse
import logging
import sys
from pathlib import Path

from .. import config, journal, names
from ..errors import LlmuxError
from .lifecycle import Lifecycle, StartFailed
from .process import CommandFailed

log = logging.getLogger("llmux-model")


def main() -> int:
    """Entry point; the exit status is 0, 1 where the model failed, 2 where it is not known."""
    parser = argparse.ArgumentParser(prog="llmux-model", description=__doc__)
    parser.add_argument("verb", choices=["start", "stop", "clean-up"])
    parser.add_argument("instance", help="the unit's instance (%%i), as systemd-escape writes it")
    parser.add_argument("-c", "--config", type=Path, default=config.DEFAULT_PATH)
    parser.add_argument("-v", "--verbose", action="store_true")
    arguments = parser.parse_args()
    journal.set_up(verbose=arguments.verbose)
    try:
        name = names.unescape(arguments.instance)
        known = config.load(arguments.config).models
        if name not in known:
            log.error("%s has no model %r", arguments.config, name)
            return 2
    except LlmuxError as error:
        log.error("%s", error)
        return 2
    return _run(arguments.verb, Lifecycle(known[name]))


def _run(verb: str, lifecycle: Lifecycle) -> int:
    try:
        match verb:
            case "start":
                lifecycle.start()
            case "stop":
                lifecycle.stop()
            case _:
                return 0 if lifecycle.clean_up() else 1
    except StartFailed as error:
        log.error("the model could not be started: %s", error)
        return 1
    except CommandFailed as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
