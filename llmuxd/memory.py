# SPDX-License-Identifier: MIT
"""The host's memory, for models that wait in it."""

from pathlib import Path

MEMINFO = Path("/proc/meminfo")

# Parked models are not to take the last of it: what else runs on the host, page cache of
# checkpoints included, keeps this share.
RESERVE = 0.2


def short() -> bool:
    """Whether less than the reserve is available, by the kernel's own estimate (proc(5))."""
    told = _told()
    return told["MemAvailable"] < RESERVE * told["MemTotal"]


def available() -> int:
    """Bytes that could be had without swapping, by the same estimate."""
    return _told()["MemAvailable"] << 10


def reachable() -> int:
    """The same with swapping."""
    told = _told()
    return told["MemAvailable"] + told["SwapFree"] << 10


def spare() -> int:
    """Bytes that could be had so, and the reserve were left."""
    told = _told()
    return max(0, int(told["MemAvailable"] - RESERVE * told["MemTotal"])) << 10


def _told() -> dict[str, int]:
    """What the kernel tells, in KiB."""
    lines = MEMINFO.read_text(encoding="ascii").splitlines()
    return {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines)}
