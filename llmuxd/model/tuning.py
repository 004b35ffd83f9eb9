# SPDX-License-Identifier: MIT
"""What a model lets go of before it leaves its GPU: as llmux.yaml says, as measured, by default.

`llmuxctl warmup --tune` has llmuxd measure it and write the record; the helper in the model's unit
reads it at each start. A record holds for the identity under which it was made, as an image does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from .. import files, names
from ..config import ModelConfig, Sleep, Snapshot, Tier
from . import vllm
from .identity import Identity, of_json

# What differs by less is the same: two runs of one way do.
NEAR = 1.05


# By which llmux.yaml says it.
KEYS = {Tier.CHECKPOINT: "image_sleep", Tier.PARK: "park_sleep"}


class Why(StrEnum):
    """Who says what is let go of."""

    CONFIG = "config"
    TUNED = "tuned"
    DEFAULT = "default"


@dataclass(frozen=True)
class LettingGo:
    """What it is, and who says so."""

    sleep: Sleep
    why: Why


@dataclass(frozen=True)
class Figures:
    """One way to leave and to come back, measured `rounds` times: medians of them.

    `out` and `back` are seconds, the latter to the first answer; `size` is in bytes, of host memory
    for a parked model, else of the image. `failed`: why it is out of the question, one line; empty
    where it came back each time as it had left.
    """

    tier: Tier
    sleep: Sleep
    out: float = 0.0
    back: float = 0.0
    size: int = 0
    rounds: int = 0
    failed: str = ""


@dataclass(frozen=True)
class Tuning:
    """What was measured of a model, and chosen; `made_at` is Unix time.

    A tier of which nothing is chosen stays at its default. `nothing`: why there was nothing to
    measure; empty where there was.
    """

    model: str
    identity: Identity
    made_at: float
    figures: tuple[Figures, ...] = ()
    chosen: dict[Tier, Sleep] = field(default_factory=dict)
    nothing: str = ""

    def why_not(self, here: Identity) -> str:
        """Why it does not hold here; empty where it does."""
        return self.identity.difference(here) or ""

    def save(self) -> None:
        """Keep it, durably."""
        files.write_json(_path(self.model), asdict(self))

    @classmethod
    def load(cls, model: str) -> "Tuning | None":
        """The record of `model`; None where there is none that can be read."""
        raw = files.read_json(_path(model))
        identity = of_json(raw.get("identity")) if raw is not None else None
        if raw is None or identity is None:
            return None
        figures, chosen = raw.get("figures"), raw.get("chosen")
        try:
            return cls(
                model=str(raw["model"]),
                identity=identity,
                made_at=float(str(raw["made_at"])),
                figures=tuple(map(_figures, figures)) if isinstance(figures, list) else (),
                chosen={Tier(tier): Sleep(sleep) for tier, sleep in chosen.items()}
                if isinstance(chosen, dict)
                else {},
                nothing=str(raw.get("nothing", "")),
            )
        except (KeyError, TypeError, ValueError):
            return None

    @staticmethod
    def forget(model: str) -> None:
        """It says nothing any more."""
        _path(model).unlink(missing_ok=True)


def open_tiers(model: ModelConfig) -> tuple[Tier, ...]:
    """The tiers in which it is not said yet what the model lets go of.

    A live image keeps the caches: they are what it is for.
    """
    if not vllm.lets_go(model):
        return ()
    images = model.checkpoint and model.snapshot is Snapshot.PRISTINE
    found = (Tier.CHECKPOINT,) if images and model.image_sleep is Sleep.AUTO else ()
    return (*found, Tier.PARK) if model.park_sleep is Sleep.AUTO else found


def why_nothing_open(model: ModelConfig) -> str:
    """Why a model has no open tier; empty where it has one."""
    if open_tiers(model):
        return ""
    if vllm.lets_go(model):
        return "its configuration says what it lets go of"
    if model.device_names:
        return f"engine {model.engine} has nothing that it could let go of"
    return "without a GPU there is nothing to let go of"


def usual(model: ModelConfig, tier: Tier, tuned: Tuning | None) -> LettingGo:
    """What the model lets go of before it leaves to `tier`; `tuned` is a record that holds."""
    wish = model.park_sleep if tier is Tier.PARK else model.image_sleep
    if not vllm.lets_go(model):
        return LettingGo(Sleep.OFF, Why.DEFAULT)
    if wish is not Sleep.AUTO:
        return LettingGo(wish, Why.CONFIG)
    if tuned is not None and tier in tuned.chosen and tier in open_tiers(model):
        return LettingGo(tuned.chosen[tier], Why.TUNED)
    return LettingGo(vllm.default(model, tier), Why.DEFAULT)


def best(figures: Iterable[Figures], tier: Tier) -> Sleep | None:
    """The one that costs a switch least; of those as good as that, the one that is back soonest.

    Of those as good in both, the smallest. None where none is left. Who parks leaves so at each
    switch, and another one waits for that, so that out and back count. An image is written once,
    and its model is just killed from then on: what it took says no more than which of two is
    better that come back as soon.
    """
    left = [each for each in figures if each.tier is tier and not each.failed]
    if not left:
        return None
    if tier is Tier.PARK:
        left = _near(left, [each.out + each.back for each in left])
        left = _near(left, [each.back for each in left])
    else:
        left = _near(left, [each.back for each in left])
        left = _near(left, [each.out for each in left])
    return min(left, key=lambda each: each.size).sleep


def recorded() -> list[str]:
    """The models that have a record."""
    raws = map(files.read_json, sorted(_directory().glob("*.json")))
    found = [(raw or {}).get("model") for raw in raws]
    return [name for name in found if isinstance(name, str)]


def _near(figures: Sequence[Figures], seconds: Sequence[float]) -> list[Figures]:
    limit = min(seconds) * NEAR
    return [each for each, took in zip(figures, seconds, strict=True) if took <= limit]


def _figures(raw: dict[str, object]) -> Figures:
    return Figures(
        tier=Tier(str(raw["tier"])),
        sleep=Sleep(str(raw["sleep"])),
        out=float(str(raw["out"])),
        back=float(str(raw["back"])),
        size=int(str(raw["size"])),
        rounds=int(str(raw["rounds"])),
        failed=str(raw["failed"]),
    )


def _directory() -> Path:
    return files.state_root() / "tunings"


def _path(model: str) -> Path:
    return _directory() / f"{names.slug(model)}.json"
