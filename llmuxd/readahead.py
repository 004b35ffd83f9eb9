# SPDX-License-Identifier: MIT
"""Has the kernel read a model's image into its page cache before it is needed there."""

import os
from pathlib import Path

from . import memory


def read_ahead(directory: Path, size: int) -> bool:
    """Begin to read all files of the image in `directory`, `size` bytes in all; may block.

    False, and nothing is read, where it would fill more than half of what memory is available: what
    it drove out would be missed as much. posix_fadvise(2) starts reads and does not wait for them.
    """
    if size > memory.available() / 2:
        return False
    for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_size):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
    return True
