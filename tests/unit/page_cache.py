# SPDX-License-Identifier: MIT
"""What the kernel has of a file in its memory."""

import ctypes
import mmap
import os
from pathlib import Path


def cached(path: Path) -> float:
    """The share of it that is in the page cache: mincore(2) looks, a read would read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        size = len(mapped)
        start = ctypes.c_char.from_buffer(mapped)
        found = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        libc = ctypes.CDLL(None, use_errno=True)
        status = libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), found)
        del start
        assert status == 0, os.strerror(ctypes.get_errno())
        return sum(page & 1 for page in found) / len(found)


def is_disk(directory: Path) -> bool:
    """Whether files there can leave memory at all; a tmpfs has no other place for them."""
    probe = directory / "probe"
    probe.write_bytes(b"x" * mmap.PAGESIZE)
    with probe.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    left = cached(probe)
    probe.unlink()
    return left == 0
