# SPDX-License-Identifier: MIT
"""Whose a process is: its name, and the model in whose unit it runs."""

from pathlib import Path

from .. import names
from ..model import mirrored

PROC = Path("/proc")


def name(pid: int) -> str:
    """What the kernel calls the process; empty where it is not seen: gone, or in another
    pid namespace.
    """
    return _read(pid, "comm").strip()


def model(pid: int) -> str | None:
    """The model of the unit that the process runs in, or that this unit serves; None without."""
    for line in _read(pid, "cgroup").splitlines():
        # On hybrid hosts systemd's own hierarchy has the units too.
        _, _, path = line.split(":", 2)
        for part in path.split("/"):
            found = names.from_unit(part)
            if found is None and part.endswith(".service"):
                found = mirrored.model_of(part)
            if found is not None:
                return found
    return None


def _read(pid: int, file: str) -> str:
    try:
        return (PROC / str(pid) / file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
