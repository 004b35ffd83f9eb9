# SPDX-License-Identifier: MIT
"""A container's own cgroup: frozen, thawed, killed.

Never the unit's: systemd starts ExecStop in a subgroup of it with vfork, so that a frozen unit
whose main process dies hangs PID 1 (systemd 262). In the container's, only the container runs.
"""

import os
import select
import time
from pathlib import Path

# A process in an uninterruptible sleep delays the freeze: a page that is read from a slow disk.
LIMIT = 30.0


class NotFrozen(Exception):
    """The cgroup goes on; one line says why."""


def freeze(directory: Path) -> None:
    """Stop all processes of the cgroup and wait until they are; NotFrozen, and they go on."""
    try:
        _write(directory, "1")
        if _told(directory, b"frozen 1", LIMIT):
            return
        thaw(directory)
    except OSError as error:
        raise NotFrozen(f"{directory.name}: {error.strerror}") from None
    raise NotFrozen(f"{directory.name} does not freeze within {LIMIT:g} s")


def thaw(directory: Path) -> None:
    """Let its processes go on; one that is gone needs none of it."""
    try:
        _write(directory, "0")
    except FileNotFoundError:
        return


def kill(directory: Path) -> bool:
    """Kill all processes of the cgroup, frozen or not, and wait until they are gone.

    False where some are still there after a time, or the kernel is older than 5.14.
    """
    try:
        (directory / "cgroup.kill").write_text("1", encoding="ascii")
        return _told(directory, b"populated 0", LIMIT)
    except OSError:
        return not directory.exists()


def _write(directory: Path, text: str) -> None:
    (directory / "cgroup.freeze").write_text(text, encoding="ascii")


def _told(directory: Path, line: bytes, timeout: float) -> bool:
    """Wait for a line in cgroup.events; the kernel tells of changes by POLLPRI (cgroups(7))."""
    end = time.monotonic() + timeout
    descriptor = os.open(directory / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLPRI)
        while line not in os.pread(descriptor, 4096, 0):
            left = end - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)
        return True
    finally:
        os.close(descriptor)
