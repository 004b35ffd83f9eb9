# SPDX-License-Identifier: MIT
"""What a model has on its GPUs: whether the host has the memory for it, and they have it again.

The driver brings all of it into memory of the model's processes. Where that is more than there is,
the kernel kills one of the host's processes to get it, and often another one than these. On its way
back it takes what is free on the GPUs, which somebody else may be about to take.
"""

import socket
import time
from collections.abc import Collection, Iterable, Mapping

from .. import memory
from ..meter.reading import BadReading, GpuMemory, Reading, parse, socket_path
from . import gpu

# In seconds. A measurement takes milliseconds, and it is in the way of whoever waits for the GPU.
LIMIT = 2.0
# So many of those who hold a GPU's memory are named.
NAMED = 3
# Bytes that a GPU may lack and it is tried all the same: the driver keeps 4 MiB for each process
# that is off its GPU (H100, 580.159), and whether the last of it is there it knows best.
SLACK = 64 << 20
# Or this share of what it took: an engine that sleeps gives back what it only kept in reserve.
RESERVED = 0.05
# Seconds for which memory is looked for again, and between two looks: whose processes have ended
# just now may be told to have it for a moment still.
SETTLE = 0.5
LOOK_AGAIN = 0.05


class TooMuch(Exception):
    """It does not fit into the host's memory; one line says what is missing."""


def check(pids: Collection[int]) -> None:
    """TooMuch where what these processes hold would leave the host less than its reserve.

    Where it is not measured, or the driver does not tell whose it is, there is nothing to go by.
    """
    _compare(_known(pids), memory.spare())


def check_dump(pids: Collection[int]) -> None:
    """The same before a dump: that is over soon, and the reserve, and swap, are there for it."""
    _compare(_known(pids), memory.reachable())


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
    _compare(_seen(reading, found) + hidden, memory.spare())


def _known(pids: Collection[int]) -> int:
    reading = _measured()
    return 0 if reading is None else _seen(reading, pids)


def _compare(held: int, spare: int) -> None:
    if held > spare:
        raise TooMuch(f"it holds {held / 1e9:.1f} GB of GPU memory, and the host has"
                      f" {spare / 1e9:.1f} GB to spare")  # fmt: skip


def held(pids: Collection[int]) -> dict[int, int]:
    """The bytes that these processes hold, by the GPU's number, as far as it is known."""
    sizes = {
        each.number: sum(holder.bytes or 0 for holder in each.holders if holder.pid in pids)
        for each in _gpus()
    }
    return {number: size for number, size in sizes.items() if size}


def why_no_room(needed: Mapping[int, int], pids: Collection[int] = ()) -> str:
    """Which GPU, by its number, has not so many bytes free, and who holds it; empty where all have.

    So it is, too, where nothing is measured, or nothing is known to be needed. What `pids` hold
    already is a part of it.
    """
    for each in _gpus() if needed else ():
        own = sum(holder.bytes or 0 for holder in each.holders if holder.pid in pids)
        wanted, free = needed.get(each.number, 0), each.total - each.used
        if wanted > free + own + max(SLACK, RESERVED * wanted):
            return (
                f"GPU {each.number} has {max(free, 0) / 1e9:.1f} GB free, and it takes"
                f" {wanted / 1e9:.1f} GB: {_holders(each)}"
            )
    return ""


def why_no_room_soon(needed: Mapping[int, int], pids: Collection[int]) -> str:
    """The same, of the moment after: where there is room now, it says so at once."""
    end = time.monotonic() + SETTLE
    while (why := why_no_room(needed, pids)) and time.monotonic() < end:
        time.sleep(LOOK_AGAIN)
    return why


def is_shared(numbers: Collection[int], model: str) -> bool | None:
    """Whether others than the model hold memory of these GPUs; None where it is not measured."""
    gpus = [each for each in _gpus() if each.number in numbers]
    if not gpus:
        return None
    return any(each.used - each.held.get(model, 0) > SLACK for each in gpus)


def _holders(full: GpuMemory) -> str:
    known = sorted(full.holders, key=lambda holder: -(holder.bytes or 0))[:NAMED]
    told = [
        f"{holder.model or holder.name or 'a process'} (PID {holder.pid}) holds"
        + (" some" if holder.bytes is None else f" {holder.bytes / 1e9:.1f} GB")
        for holder in known
    ]
    return "; ".join(told) or f"processes that are not seen hold {full.used / 1e9:.1f} GB"


def _gpus() -> tuple[GpuMemory, ...]:
    reading = _measured()
    return () if reading is None else reading.gpus


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
