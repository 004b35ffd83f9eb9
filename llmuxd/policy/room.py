# SPDX-License-Identifier: MIT
"""What fits on the GPUs together, by what models say they need and what others hold."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

GIB = 1 << 30
# Less is not worth a word: it would be told as 0.0 GiB.
TELLING = GIB // 20


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


# So many of those who hold memory are named to who gets none.
NAMED = 3


@dataclass(frozen=True)
class Gpu:
    """A GPU's memory in bytes: all of it, and what is used and not known to be a model's.

    `hidden` is that part of `foreign` which no process that was seen holds. `others` has the
    processes that are no model, the largest first, `held` what was measured of each model. Where
    a model is not in, `seen` counts what it holds as foreign, and has it in `away`.
    """

    total: int
    foreign: int = 0
    hidden: int = 0
    others: tuple[tuple[str, int], ...] = ()
    held: Mapping[str, int] = field(default_factory=dict)
    away: Mapping[str, int] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """What nobody has."""
        return max(0, self.total - self.foreign - sum(self.held.values()))

    def foreign_to(self, name: str) -> int:
        """What those hold that neither are in nor are this model."""
        return self.foreign - self.away.get(name, 0)

    def takes(self, model: Tenant) -> int:
        """What the model takes: what it says or, where that is more, what it holds already."""
        said = self.total if model.vram is None else model.vram
        return max(said, self.held.get(model.name, 0))


def seen(gpus: Mapping[int, Gpu], tenants: Iterable[Tenant]) -> dict[int, Gpu]:
    """The measured GPUs, by what is known of who is in."""
    there = list(tenants)
    return {
        number: _seen(gpu, [t for t in there if number in t.gpus]) for number, gpu in gpus.items()
    }


def _seen(gpu: Gpu, tenants: list[Tenant]) -> Gpu:
    names = {tenant.name for tenant in tenants}
    away = {name: size for name, size in gpu.held.items() if name not in names}
    # Where the driver shows no process of a model that is in, what nobody is seen to hold is taken
    # for the model's, up to what it says that it needs.
    untold = sum(gpu.takes(tenant) for tenant in tenants if tenant.name not in gpu.held)
    foreign = gpu.foreign - min(gpu.hidden, untold) + sum(away.values())
    named = tuple((_away(name), size) for name, size in away.items())
    return replace(gpu, foreign=foreign, others=(*named, *gpu.others), away=away)


@dataclass(frozen=True)
class NoRoom:
    """Why a model cannot come in, whoever leaves. Memory is in bytes on the GPU `gpu`.

    `needed` and `missing` are None where the model wants the whole GPU. `pinned` are the models
    that never leave, with what each holds (None: the whole GPU); `others` are those who hold what
    is foreign, as far as they are known.
    """

    model: str
    gpu: int
    needed: int | None
    missing: int | None
    foreign: int
    pinned: tuple[tuple[str, int | None], ...] = ()
    others: tuple[tuple[str, int], ...] = ()

    @property
    def reason(self) -> str:
        """One line for who asked."""
        held = [f"{name!r} (pinned) holds {_size(vram)}" for name, vram in self.pinned]
        named = self.others[:NAMED]
        held += [f"{name} holds {_size(size)}" for name, size in named]
        rest = self.foreign - sum(size for _, size in named)
        if rest >= TELLING:
            who = "others" if named else "processes that are no model"
            held.append(f"{who} hold {_size(rest)}")
        wish = f"{self.model!r} needs {_size(self.needed)} of GPU {self.gpu}"
        if self.missing is not None:
            wish += f", {_size(self.missing)} more than it can have"
        return f"{wish}: {'; '.join(held) or 'it is larger than the GPU'}"


def no_room(model: Tenant, gpus: Mapping[int, Gpu], pinned: Iterable[Tenant]) -> NoRoom | None:
    """Why the model can never come in beside the pinned ones that are; None where it can."""
    for number in sorted(model.gpus):
        there = [other for other in pinned if number in other.gpus and other.name != model.name]
        # In one order, whoever came first: it is told.
        held = tuple((other.name, other.vram) for other in sorted(there, key=lambda one: one.name))
        gpu = gpus.get(number)
        foreign = gpu.foreign_to(model.name) if gpu else 0
        others = _others(model.name, gpu) if gpu else ()
        if model.vram is None or gpu is None:
            if there:
                return NoRoom(model.name, number, None, None, foreign, held, others)
            continue
        needed = gpu.takes(model)
        missing = needed + foreign + sum(map(gpu.takes, there)) - gpu.total
        if missing > 0:
            return NoRoom(model.name, number, needed, missing, foreign, held, others)
    return None


def _others(name: str, gpu: Gpu) -> tuple[tuple[str, int], ...]:
    mine = _away(name)
    return tuple(other for other in gpu.others if other[0] != mine)


def _away(name: str) -> str:
    return f"{name!r} (not in use)"


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
        return all(self._fits_on(number, model) for number in model.gpus)

    def is_full(self, number: int) -> bool:
        """Whether nothing fits on that GPU any more, however small."""
        load = self._loads.get(number)
        if load is None or not load.tenants:
            return False
        gpu = self.gpus.get(number)
        return gpu is None or load.whole > 0 or load.bytes + gpu.foreign >= gpu.total

    def _fits_on(self, number: int, model: Tenant) -> bool:
        load = self._loads.get(number)
        gpu = self.gpus.get(number)
        alone = load is None or not load.tenants
        if model.vram is None or gpu is None:
            return alone
        taken = gpu.takes(model) + gpu.foreign_to(model.name)
        if load is None or alone:
            return taken <= gpu.total
        return not load.whole and load.bytes + taken <= gpu.total

    def _book(self, model: Tenant, sign: int) -> None:
        for number in model.gpus:
            gpu = self.gpus.get(number)
            load = self._loads.setdefault(number, _Load())
            load.tenants += sign
            if model.vram is None:
                load.whole += sign
            else:
                load.bytes += sign * (gpu.takes(model) if gpu else model.vram)


def _size(vram: int | None) -> str:
    return "all" if vram is None else f"{vram / GIB:.1f} GiB"
