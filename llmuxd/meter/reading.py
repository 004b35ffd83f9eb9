# SPDX-License-Identifier: MIT
"""What was measured, and the line of JSON as which it goes from the meter to who listens."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import files


class BadReading(Exception):
    """The line is none of ours."""


@dataclass(frozen=True)
class Holder:
    """A process with memory on a GPU.

    `model` is the model in whose unit it runs, None for any other process. `bytes` is None where
    the driver does not tell (as with vGPU).
    """

    pid: int
    name: str
    model: str | None
    bytes: int | None


@dataclass(frozen=True)
class GpuMemory:
    """One GPU's memory, in bytes.

    `number` is NVML's, in the order of PCI addresses, which CDI's `nvidia.com/gpu=N` has too.
    `total` is what processes can have: without what the driver keeps for itself.
    """

    number: int
    name: str
    total: int
    used: int
    holders: tuple[Holder, ...] = ()

    @property
    def held(self) -> dict[str, int]:
        """What each model holds, as far as its processes are seen."""
        held: dict[str, int] = {}
        for holder in self.holders:
            if holder.model is not None and holder.bytes is not None:
                held[holder.model] = held.get(holder.model, 0) + holder.bytes
        return held

    @property
    def hidden(self) -> int:
        """What is used, but by no process that is seen: in another pid namespace, or untold."""
        return max(0, self.used - sum(holder.bytes or 0 for holder in self.holders))

    @property
    def foreign(self) -> int:
        """What is used and not known to be a model's."""
        return max(0, self.used - sum(self.held.values()))


@dataclass(frozen=True)
class Reading:
    """All GPUs at one moment. `at` is CLOCK_MONOTONIC before the first was looked at, in seconds.

    That clock is the same in every process: who knows what happened when knows whether a reading
    has seen it. `error` says in one line why there are no GPUs in it.
    """

    at: float
    gpus: tuple[GpuMemory, ...] = ()
    error: str = ""

    def line(self) -> bytes:
        """For `parse`, with the newline."""
        return json.dumps(asdict(self)).encode() + b"\n"

    def tells_as(self, other: "Reading | None") -> bool:
        """Whether nothing but the time is different."""
        return other is not None and (self.gpus, self.error) == (other.gpus, other.error)


def socket_path() -> Path:
    """Where llmux-gpus.socket listens."""
    return files.runtime_root() / "gpus.sock"


def parse(line: bytes) -> Reading:
    """The reading in a line; BadReading where it has none, as when the two are of two versions."""
    try:
        raw = json.loads(line)
        gpus = tuple(_gpu(each) for each in raw["gpus"])
        return Reading(float(raw["at"]), gpus, str(raw["error"]))
    except (ValueError, TypeError, KeyError) as error:
        raise BadReading(f"not a reading: {error!r}") from None


def _gpu(raw: Mapping[str, object]) -> GpuMemory:
    holders = raw["holders"]
    if not isinstance(holders, list):
        raise TypeError("holders is no list")
    numbers = [int(str(raw[key])) for key in ("number", "total", "used")]
    number, total, used = numbers
    return GpuMemory(number, str(raw["name"]), total, used, tuple(_holder(it) for it in holders))


def _holder(raw: Mapping[str, object]) -> Holder:
    model, size = raw["model"], raw["bytes"]
    return Holder(
        pid=int(str(raw["pid"])),
        name=str(raw["name"]),
        model=None if model is None else str(model),
        bytes=None if size is None else int(str(size)),
    )
