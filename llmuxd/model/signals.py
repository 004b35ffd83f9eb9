# SPDX-License-Identifier: MIT
"""The processes of a unit that is not ours: stopped and continued by signals.

Never frozen: PID 1 would hang, for as long as they are, with any command that it starts in that
cgroup (ExecStop=, ExecReload=, ExecStopPost=), and nobody could stop the unit. A process that is
stopped by SIGSTOP is in nobody's way: systemd sends SIGCONT behind each SIGTERM.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

from . import cgroup
from .freezer import NotFrozen

# In seconds. One in an uninterruptible sleep stops when that is over.
LIMIT = 30.0
# Nobody tells another's parent that a process has stopped.
PAUSE = 0.005
_STILL = frozenset("TtZX")


def stop(directory: Path) -> None:
    """Stop all processes of the cgroup and wait until they are; NotFrozen, and they go on."""
    end = time.monotonic() + LIMIT
    while running := [pid for pid in cgroup.processes(directory) if _state(pid) not in _STILL]:
        # Again, until there is none: one may have forked before it was stopped.
        _send(running, signal.SIGSTOP)
        if time.monotonic() > end:
            proceed(directory)
            raise NotFrozen(f"{len(running)} processes do not stop within {LIMIT:g} s")
        time.sleep(PAUSE)


def proceed(directory: Path) -> None:
    """Let its processes go on."""
    _send(cgroup.processes(directory), signal.SIGCONT)


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _state(pid: int) -> str:
    """Its state in the letters of proc(5); X where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "X"
    return text.rpartition(")")[2].split()[0]
