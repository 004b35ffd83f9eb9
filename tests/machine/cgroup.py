# SPDX-License-Identifier: MIT
"""The cgroup of each machine: everything that runs in a machine is in it."""

import os
import select
import time
from pathlib import Path

from . import host
from .errors import MachineError


def path(machine: str) -> Path:
    return host.cgroup_root() / f"llmux-machine-{machine}"


def enter(machine: str) -> None:
    """Moves this process into the machine's cgroup, which it makes."""
    group = path(machine)
    group.mkdir(exist_ok=True)
    (group / "cgroup.procs").write_text(str(os.getpid()))


def leave() -> None:
    """Moves this process out of the machine's cgroup, so that this can be removed."""
    (host.cgroup_root() / "cgroup.procs").write_text(str(os.getpid()))


def visitors(machine: str) -> Path:
    """The cgroup, as the host sees it, of what is run in the machine from outside.

    Without it those processes would be in a cgroup that the machine can't see, and podman and
    polkit would read nonsense (/../../..) in their /proc/self/cgroup.
    """
    group = path(machine) / "payload/visitors"
    group.mkdir(exist_ok=True)
    return group


def remove(machine: str, *, timeout: float = 10.0) -> None:
    """Ends what is left in the machine's cgroup and removes it from every hierarchy."""
    group = path(machine)
    if group.exists():
        (group / "cgroup.kill").write_text("1")
        _wait_empty(group, timeout)
    # On a hybrid host systemd-nspawn makes the same path in systemd's own version 1 hierarchy.
    legacy = Path("/sys/fs/cgroup/systemd") / group.name
    for top in (group, legacy):
        for directory, _, _ in os.walk(top, topdown=False):
            os.rmdir(directory)


def _wait_empty(group: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    with (group / "cgroup.events").open() as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while "populated 1" in events.read():
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise MachineError(f"processes in {group} don't end", f"cat {group}/cgroup.procs")
            events.seek(0)
