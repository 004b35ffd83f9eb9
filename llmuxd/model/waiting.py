# SPDX-License-Identifier: MIT
"""A start that llmuxd has begun before its place on the GPU is free, and holds back until then.

What it takes to load, and systemd to begin with it, is done by then. A start by hand that comes
meanwhile is systemd's same job: it goes on with it, or is cancelled with it where the place goes to
another model after all, or there is no room beside the one that has it.
"""

import time

from .. import loggers, names
from ..hold import WAITING, Waiting
from .notify import notify
from .process import CommandFailed, run

log = loggers.named("llmux-model")

# Nobody's way off a GPU takes longer: it is the unit's TimeoutStopSec.
LIMIT = 1200.0
# What systemd may take to stop a unit that asks for it.
STOP_LIMIT = 60.0


def may_start(model: str) -> bool:
    """Wait for as long as llmuxd holds the start back, if it does; False where it is not to be."""
    try:
        waiting = Waiting(model)
    except FileNotFoundError:
        return True
    usec = int((LIMIT + STOP_LIMIT) * 1e6)
    notify(f"EXTEND_TIMEOUT_USEC={usec}\nSTATUS={WAITING}")
    return waiting.wait(LIMIT)


def withdraw(model: str) -> int:
    """End the unit, which has done nothing yet; the exit status, where systemd does not end it.

    By a stop: it has not failed, and is not to be shown as if it had.
    """
    log.info("not started: llmuxd, which began this, is gone, or has not gone on with it")
    try:
        run(["systemctl", "stop", "--no-block", "--", names.unit(model)], STOP_LIMIT)
        time.sleep(STOP_LIMIT)
    except CommandFailed as error:
        log.warning("%s", error)
    notify("STATUS=failed: llmuxd did not go on with its start")
    return 1
