# SPDX-License-Identifier: MIT
"""What is let go of, and by whose word; the record of what was measured."""

from dataclasses import replace

import pytest

from llmuxd import files
from llmuxd.config import Engine, ModelConfig, Sleep, Snapshot, Tier
from llmuxd.model import sweeping
from llmuxd.model.identity import Identity
from llmuxd.model.tuning import (
    Figures,
    LettingGo,
    Tuning,
    Why,
    best,
    open_tiers,
    usual,
    why_nothing_open,
)

MODEL = ModelConfig("a/b", "i")
LIVE = replace(MODEL, snapshot=Snapshot.LIVE)
HERE = Identity("d", "i", "m", "k", "c")
DISK, PARK = Tier.CHECKPOINT, Tier.PARK
MEASURED = (
    Figures(DISK, Sleep.LEVEL_2, 2.8, 4.2, 3 << 30, 3),
    Figures(PARK, Sleep.OFF, failed="it did not come back"),
    Figures(PARK, Sleep.LEVEL_1, 1.0, 1.3, 9 << 30, 2, "its canary says no"),
)
TUNED = Tuning("a/b", HERE, 1.5, MEASURED, {DISK: Sleep.LEVEL_1, PARK: Sleep.KV})


def figures(sleep: Sleep, back: float, out: float = 1.0, size: int = 1) -> Figures:
    return Figures(DISK, sleep, out, back, size, 3)


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ([], None),
        ([figures(Sleep.OFF, 2.0), figures(Sleep.KV, 1.0, 9.0, 9)], Sleep.KV),
        # 4 % slower is as soon.
        ([figures(Sleep.OFF, 1.0, 2.0), figures(Sleep.KV, 1.04, 1.0)], Sleep.KV),
        ([figures(Sleep.OFF, 1.0, 2.0), figures(Sleep.KV, 1.06, 1.0)], Sleep.OFF),
        ([figures(Sleep.OFF, 1.0, 1.0, 5), figures(Sleep.KV, 1.04, 1.04, 4)], Sleep.KV),
        ([figures(Sleep.OFF, 1.0, 1.0, 5), figures(Sleep.KV, 1.04, 1.06, 4)], Sleep.OFF),
        ([replace(figures(Sleep.OFF, 0.1), failed="no"), figures(Sleep.KV, 9.0)], Sleep.KV),
        ([replace(figures(Sleep.OFF, 0.1), failed="no")], None),
        ([replace(figures(Sleep.OFF, 0.1), tier=PARK), figures(Sleep.KV, 9.0)], Sleep.KV),
    ],
)
def test_the_best_image_is_back_soonest_then_out_soonest_then_small(
    measured: list[Figures], chosen: Sleep | None
) -> None:
    assert best(measured, DISK) is chosen
    assert best(measured[::-1], DISK) is chosen


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        # As on an H100: of a 3B model level 1, of an OPT-125M level 2.
        ([figures(Sleep.LEVEL_1, 1.3, 1.0), figures(Sleep.LEVEL_2, 1.8, 0.6)], Sleep.LEVEL_1),
        ([figures(Sleep.LEVEL_1, 0.5, 1.0), figures(Sleep.LEVEL_2, 0.7, 0.6)], Sleep.LEVEL_2),
        # 4 % slower is as fast, and back sooner is better then.
        ([figures(Sleep.LEVEL_1, 0.5, 0.54), figures(Sleep.LEVEL_2, 0.7, 0.3)], Sleep.LEVEL_1),
        ([figures(Sleep.LEVEL_1, 1.0, 1.0, 9), figures(Sleep.LEVEL_2, 1.0, 1.0, 3)], Sleep.LEVEL_2),
    ],
)
def test_the_best_park_is_the_fastest_round_trip(measured: list[Figures], chosen: Sleep) -> None:
    parks = [replace(each, tier=PARK) for each in measured]
    assert best(parks, PARK) is chosen
    assert best(parks[::-1], PARK) is chosen


@pytest.mark.parametrize(
    ("model", "image", "park"),
    [
        (MODEL, Sleep.LEVEL_2, Sleep.LEVEL_1),
        (LIVE, Sleep.OFF, Sleep.LEVEL_1),
        (replace(MODEL, devices=(), image_sleep=Sleep.LEVEL_1), Sleep.OFF, Sleep.OFF),
        (replace(MODEL, engine=Engine.LLAMA_SERVER), Sleep.OFF, Sleep.OFF),
    ],
)
def test_the_defaults_follow_the_measurements(
    model: ModelConfig, image: Sleep, park: Sleep
) -> None:
    assert usual(model, DISK, None) == LettingGo(image, Why.DEFAULT)
    assert usual(model, PARK, None) == LettingGo(park, Why.DEFAULT)


def test_what_was_measured_goes_before_the_default() -> None:
    assert usual(MODEL, DISK, TUNED) == LettingGo(Sleep.LEVEL_1, Why.TUNED)
    assert usual(MODEL, PARK, TUNED) == LettingGo(Sleep.KV, Why.TUNED)
    nothing_chosen = replace(TUNED, chosen={})
    assert usual(MODEL, PARK, nothing_chosen) == LettingGo(Sleep.LEVEL_1, Why.DEFAULT)


@pytest.mark.parametrize("wish", [Sleep.OFF, Sleep.KV, Sleep.LEVEL_1, Sleep.LEVEL_2])
def test_what_the_configuration_says_goes_before_all(wish: Sleep) -> None:
    model = replace(MODEL, image_sleep=wish, park_sleep=wish)
    for tier in (DISK, PARK):
        assert usual(model, tier, TUNED) == LettingGo(wish, Why.CONFIG)


def test_a_live_image_keeps_the_caches_whatever_was_measured() -> None:
    assert usual(LIVE, DISK, TUNED) == LettingGo(Sleep.OFF, Why.DEFAULT)
    assert usual(LIVE, PARK, TUNED) == LettingGo(Sleep.KV, Why.TUNED)


@pytest.mark.parametrize(
    ("model", "tiers", "why"),
    [
        (MODEL, (DISK, PARK), ""),
        (LIVE, (PARK,), ""),
        (replace(MODEL, checkpoint=False), (PARK,), ""),
        (replace(MODEL, park_sleep=Sleep.LEVEL_2), (DISK,), ""),
        (replace(MODEL, image_sleep=Sleep.OFF), (PARK,), ""),
        (replace(LIVE, park_sleep=Sleep.OFF), (), "configuration says"),
        (replace(MODEL, engine=Engine.LLAMA_SERVER), (), "engine llama-server has nothing"),
        (replace(MODEL, engine=Engine.GENERIC), (), "engine generic has nothing"),
        (replace(MODEL, devices=()), (), "without a GPU"),
    ],
)
def test_what_is_open_is_what_nobody_says(
    model: ModelConfig, tiers: tuple[Tier, ...], why: str
) -> None:
    assert open_tiers(model) == tiers
    assert why in why_nothing_open(model) and bool(why) is not bool(tiers)


def test_a_record_comes_back_as_it_was_written() -> None:
    TUNED.save()
    assert Tuning.load("a/b") == TUNED
    assert Tuning.load("a-b") is None
    nothing = Tuning("a/b", HERE, 2.0, nothing="its sleep mode is off")
    nothing.save()
    assert Tuning.load("a/b") == nothing
    Tuning.forget("a/b")
    Tuning.forget("a/b")
    assert Tuning.load("a/b") is None


@pytest.mark.parametrize(
    "damage",
    [
        {"identity": None}, {"identity": {"definition": "d"}}, {"identity": {"moon": "full"}},
        {"made_at": "soon"}, {"chosen": {"park": "3"}}, {"chosen": {"attic": "1"}},
        {"figures": [{"tier": "park"}]}, {"figures": ["park"]},
    ],
)  # fmt: skip
def test_a_damaged_record_is_none(damage: dict[str, object]) -> None:
    TUNED.save()
    (path,) = files.state_root().glob("tunings/*.json")
    files.write_json(path, (files.read_json(path) or {}) | damage)
    assert Tuning.load("a/b") is None


def test_it_holds_for_what_it_was_made_of() -> None:
    assert TUNED.why_not(HERE) == ""
    assert TUNED.why_not(replace(HERE, gpus="H200")) == "the host's GPUs changed"


def test_what_was_measured_goes_with_its_model() -> None:
    TUNED.save()
    sweeping.sweep({"a/b": replace(MODEL, args=("--other",))})
    assert Tuning.load("a/b") == TUNED
    sweeping.sweep({"a-b": MODEL})
    assert Tuning.load("a/b") is None
