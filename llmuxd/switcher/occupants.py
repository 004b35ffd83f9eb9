# SPDX-License-Identifier: MIT
"""Who has a GPU's memory, in words, for whom it is refused to."""

from collections.abc import Mapping

from ..policy import Gpu, Stage
from ..policy.room import GIB, NAMED
from .fleet import Fleet
from .models import Model


def holders(fleet: Fleet, gpus: Mapping[int, Gpu], model: Model, number: int) -> str:
    """Who holds memory of that GPU beside the model, and how much where that was measured."""
    gpu = gpus.get(number, Gpu(0))
    there = {
        other.name
        for other in fleet.models.values()
        if number in other.held and fleet.stage(other) is not Stage.OUT
    }
    models = sorted({*there, *gpu.held} - {model.name})
    sizes = [(f"{name!r}", gpu.held.get(name, 0)) for name in models]
    return ", ".join(
        f"{name} holds" + (f" {size / GIB:.1f} GiB of" if size else "") + f" GPU {number}"
        for name, size in [*sizes, *gpu.others[:NAMED]]
    )
