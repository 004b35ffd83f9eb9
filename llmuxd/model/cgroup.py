# SPDX-License-Identifier: MIT
"""The unit's own cgroup, as its helper sees it."""

import contextlib
import os
import signal
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def kill_others() -> None:
    """Kill every process of this unit but the caller.

    A podman that was given up on leaves conmon, the runtime and CRIU behind; nobody else ends
    them while the unit starts.
    """
    unit = _unit_directory()
    if unit is None:
        return
    for procs in unit.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            for pid in procs.read_text(encoding="ascii").split():
                if int(pid) != os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)


def _unit_directory() -> Path | None:
    """The cgroup of the llmux-model@ unit that this process runs in; None outside of one."""
    own = Path("/proc/self/cgroup").read_text(encoding="ascii")
    for line in own.splitlines():
        hierarchy, _, path = line.split(":", 2)
        if hierarchy != "0":
            continue
        # podman moves its callers to a subgroup of the unit's.
        for directory in [Path(path), *Path(path).parents]:
            if directory.name.endswith(".service"):
                return ROOT / directory.relative_to("/")
    return None
