# SPDX-License-Identifier: MIT
"""What a model has on its GPUs, and whether the host has the memory to take it in.

The driver brings all of it into memory of the model's processes. Where that is more than there is,
the kernel kills one of the host's processes to get it, and often another one than these.
"""

import socket
from collections.abc import Collection, Iterable

from .. import memory
from ..meter.reading import BadReading, Reading, parse, socket_path
from . import gpu

# In seconds. A measurement takes milliseconds, and it is in the way of whoever waits for the GPU.
LIMIT = 2.0


class TooMuch(Exception):
    """It does not fit into the host's memory; one line says what is missing."""


def check(pids: Collection[int]) -> None:
    """TooMuch where what these processes hold would leave the host less than its reserve.

    Where it is not measured, or the driver does not tell whose it is, there is nothing to go by.
    """
    reading = _measured()
    _compare(0 if reading is None else _seen(reading, pids))


def check_trial(pids: Iterable[int]) -> None:
    """The same of those of `pids` that use CUDA, for a leaving that nobody needs but to measure it.

    What is not known to be others' may be theirs, and TooMuch is also what is not measured.
    """
    try:
        found = gpu.find(gpu.Driver(), pids)
    except gpu.NoDriver:
        return
    except gpu.NotDone as error:
        raise TooMuch(f"what it holds of GPU memory is not known: {error}") from None
    if not found:
        return
    reading = _measured()
    if reading is None:
        raise TooMuch("what it holds of GPU memory is not known: llmux-gpus.service does not say")
    told = {h.pid for each in reading.gpus for h in each.holders if h.bytes is not None}
    hidden = sum(each.hidden for each in reading.gpus) if found.keys() - told else 0
    _compare(_seen(reading, found) + hidden)


def _compare(held: int) -> None:
    spare = memory.spare()
    if held > spare:
        raise TooMuch(f"it holds {held / 1e9:.1f} GB of GPU memory, and the host has"
                      f" {spare / 1e9:.1f} GB to spare")  # fmt: skip


def _measured() -> Reading | None:
    """As llmux-gpus.service measures for who connects; None where it does not."""
    with socket.socket(socket.AF_UNIX) as meter:
        meter.settimeout(LIMIT)
        try:
            meter.connect(str(socket_path()))
            with meter.makefile("rb") as lines:
                reading = parse(lines.readline())
        except (OSError, BadReading):
            return None
    return None if reading.error else reading


def _seen(reading: Reading, pids: Collection[int]) -> int:
    """The bytes on all GPUs that are told to be theirs."""
    holders = [holder for each in reading.gpus for holder in each.holders]
    return sum(holder.bytes or 0 for holder in holders if holder.pid in pids)
