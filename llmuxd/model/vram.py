# SPDX-License-Identifier: MIT
"""What a model has on its GPUs, and whether the host has the memory to take it in.

The driver brings all of it into memory of the model's processes. Where that is more than there is,
the kernel kills one of the host's processes to get it, and often another one than these.
"""

import socket
from collections.abc import Collection

from .. import memory
from ..meter.reading import BadReading, parse, socket_path

# In seconds. A measurement takes milliseconds, and it is in the way of whoever waits for the GPU.
LIMIT = 2.0


class TooMuch(Exception):
    """It does not fit into the host's memory; one line says what is missing."""


def check(pids: Collection[int]) -> None:
    """TooMuch where what these processes hold would leave the host less than its reserve.

    Where it is not measured, or the driver does not tell whose it is, there is nothing to go by.
    """
    held, spare = _held(pids), memory.spare()
    if held > spare:
        raise TooMuch(f"it holds {held / 1e9:.1f} GB of GPU memory, and the host has"
                      f" {spare / 1e9:.1f} GB to spare")  # fmt: skip


def _held(pids: Collection[int]) -> int:
    """Bytes on all GPUs, as llmux-gpus.service measures them for who connects."""
    with socket.socket(socket.AF_UNIX) as meter:
        meter.settimeout(LIMIT)
        try:
            meter.connect(str(socket_path()))
            with meter.makefile("rb") as lines:
                reading = parse(lines.readline())
        except (OSError, BadReading):
            return 0
    holders = [holder for gpu in reading.gpus for holder in gpu.holders]
    return sum(holder.bytes or 0 for holder in holders if holder.pid in pids)
