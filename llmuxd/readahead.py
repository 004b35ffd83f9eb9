# SPDX-License-Identifier: MIT
"""Has the kernel read a model's image into its page cache before it is needed there."""

import os
from pathlib import Path

from . import memory
from .model.checkpoint import SHM

# Of one call the kernel heeds no more than the disk's read_ahead_kb or its largest request, and of
# a page file of gigabytes would read the first megabyte: the default of the first, in bytes.
STEP = 128 << 10


def read_ahead(directory: Path, size: int) -> bool:
    """Begin to read the image in podman's `directory`, `size` bytes in all; may block.

    False, and nothing is read, where it would fill more than half of what memory is available: what
    it drove out would be missed as much. posix_fadvise(2) starts reads and does not wait for them.
    """
    if size > memory.available() / 2:
        return False
    beside = directory.parent.glob(SHM)
    for path in sorted([*directory.iterdir(), *beside], key=lambda path: path.stat().st_size):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start in range(0, os.fstat(descriptor).st_size, STEP):
                os.posix_fadvise(descriptor, start, STEP, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
    return True
