# SPDX-License-Identifier: MIT
"""What fits on the GPUs together, by what models say they need and what others hold."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

GIB = 1 << 30


class Tenant(Protocol):
    """What room needs to know of a model."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def gpus(self) -> frozenset[int]:
        """The GPUs that it occupies."""

    @property
    def vram(self) -> int | None:
        """Bytes on each of them; None: all."""


@dataclass(frozen=True)
class Gpu:
    """A GPU's memory in bytes: all of it, and what processes hold that are no model of ours."""

    total: int
    foreign: int = 0


@dataclass(frozen=True)
class NoRoom:
    """Why a model cannot come in, whoever leaves. Memory is in bytes on the GPU `gpu`.

    `needed` and `missing` are None where the model wants the whole GPU. `pinned` are the models
    that never leave, with what each holds (None: the whole GPU).
    """

    model: str
    gpu: int
    needed: int | None
    missing: int | None
    foreign: int
    pinned: tuple[tuple[str, int | None], ...] = ()

    @property
    def reason(self) -> str:
        """One line for who asked."""
        held = [f"{name!r} (pinned) holds {_size(vram)}" for name, vram in self.pinned]
        if self.foreign:
            held.append(f"processes that are no model hold {_size(self.foreign)}")
        wish = f"{self.model!r} needs {_size(self.needed)} of GPU {self.gpu}"
        if self.missing is not None:
            wish += f", {_size(self.missing)} more than it can have"
        return f"{wish}: {'; '.join(held) or 'it is larger than the GPU'}"


def no_room(model: Tenant, gpus: Mapping[int, Gpu], pinned: Iterable[Tenant]) -> NoRoom | None:
    """Why the model can never come in beside the pinned ones that are; None where it can."""
    for number in sorted(model.gpus):
        there = [other for other in pinned if number in other.gpus and other.name != model.name]
        held = tuple((other.name, other.vram) for other in there)
        gpu = gpus.get(number)
        foreign = gpu.foreign if gpu else 0
        if model.vram is None or gpu is None:
            if there:
                return NoRoom(model.name, number, None, None, foreign, held)
            continue
        taken = sum(gpu.total if vram is None else vram for _, vram in held)
        missing = model.vram + foreign + taken - gpu.total
        if missing > 0:
            return NoRoom(model.name, number, model.vram, missing, foreign, held)
    return None


@dataclass
class _Load:
    tenants: int = 0
    whole: int = 0  # of these, how many want all of the GPU
    bytes: int = 0


@dataclass
class Room:
    """Who is on the GPUs at one moment, real or planned. Two share one only if both say `vram`.

    It may hold more than fits: a promise behind another promise is kept in the books too.
    """

    gpus: Mapping[int, Gpu]
    _loads: dict[int, _Load] = field(default_factory=dict)

    def add(self, model: Tenant) -> None:
        """Put the model on its GPUs."""
        self._book(model, 1)

    def remove(self, model: Tenant) -> None:
        """Take it off again."""
        self._book(model, -1)

    def fits(self, model: Tenant) -> bool:
        """Whether it could come beside those that are there."""
        return all(self._fits_on(number, model.vram) for number in model.gpus)

    def is_full(self, number: int) -> bool:
        """Whether nothing fits on that GPU any more, however small."""
        load = self._loads.get(number)
        if load is None or not load.tenants:
            return False
        gpu = self.gpus.get(number)
        return gpu is None or load.whole > 0 or load.bytes + gpu.foreign >= gpu.total

    def _fits_on(self, number: int, vram: int | None) -> bool:
        load = self._loads.get(number)
        gpu = self.gpus.get(number)
        if load is None or not load.tenants:
            return vram is None or gpu is None or vram + gpu.foreign <= gpu.total
        if vram is None or gpu is None or load.whole:
            return False
        return load.bytes + vram + gpu.foreign <= gpu.total

    def _book(self, model: Tenant, sign: int) -> None:
        for number in model.gpus:
            load = self._loads.setdefault(number, _Load())
            load.tenants += sign
            if model.vram is None:
                load.whole += sign
            else:
                load.bytes += sign * model.vram


def _size(vram: int | None) -> str:
    return "all" if vram is None else f"{vram / GIB:.1f} GiB"
