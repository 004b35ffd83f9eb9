# SPDX-License-Identifier: MIT
from dataclasses import replace

from llmuxd.policy import Decision, Gpu, ModelView, Need, Stage, decide
from llmuxd.policy.moment import Moment

GIB = 1 << 30
NOW = 100.0


def model(
    name: str, gib: int | None, stage: Stage = Stage.OUT, *, waits: bool = False, host: int = 0
) -> ModelView:
    need = None if gib is None else Need(gib * GIB, host)
    return ModelView(name, frozenset({0}), stage, 1.0 if waits else None, need=need)


def holding(foreign: int = 0, **held: int) -> dict[int, Gpu]:
    return {0: Gpu(100 * GIB, foreign * GIB, held={m: gib * GIB for m, gib in held.items()})}


OLD, NEW = model("old", 40, Stage.IN), model("new", 50, waits=True)


def test_the_new_one_comes_while_the_old_one_is_there() -> None:
    found = decide([OLD, NEW], NOW, holding(old=40))
    assert found == Decision(activate=("new",), drain=("old",), beside=("new",))


def test_what_others_took_counts() -> None:
    assert decide([OLD, NEW], NOW, holding(6, old=40)) == Decision(drain=("old",))


def test_what_the_old_one_may_still_take_counts() -> None:
    grows = replace(OLD, need=Need(46 * GIB))
    assert decide([grows, NEW], NOW, holding(old=40)) == Decision(drain=("old",))


def test_what_the_new_one_left_there_is_its_own() -> None:
    assert decide([OLD, NEW], NOW, holding(old=43, new=2)).beside == ("new",)


def test_who_would_start_cold_waits_for_the_place() -> None:
    assert decide([OLD, model("new", None, waits=True)], NOW, holding(old=4)).beside == ()


def test_an_unmeasured_gpu_is_shared_by_nobody() -> None:
    assert decide([OLD, NEW], NOW) == Decision(drain=("old",))


def test_who_holds_no_gpu_needs_none_measured() -> None:
    assert decide([OLD, model("new", 0, waits=True)], NOW).beside == ("new",)


def test_one_that_drains_already_is_not_waited_for() -> None:
    for stage in (Stage.DRAINING, Stage.LEAVING):
        found = decide([replace(OLD, stage=stage), NEW], NOW, holding(old=40))
        assert found == Decision(activate=("new",), beside=("new",))


def test_one_that_is_coming_is_reckoned_with_all_that_it_took() -> None:
    leaves = replace(OLD, stage=Stage.LEAVING)
    third = model("third", 10, waits=True)
    coming = replace(NEW, stage=Stage.COMING)
    assert decide([leaves, coming, third], NOW, holding(old=20, new=1)).beside == ()
    # What it will take is not known: it may be all.
    cold = replace(coming, need=None)
    moment = Moment(holding(old=20, new=1), 0)
    assert not moment.holds(third, [leaves, cold])
    assert moment.holds(third, [leaves, replace(cold, stage=Stage.IN)])


def test_two_that_come_at_once_are_both_reckoned_with() -> None:
    leaves = replace(OLD, stage=Stage.LEAVING)
    others = [replace(model(name, 30, waits=True), vram=GIB) for name in ("a", "b")]
    assert decide([leaves, *others], NOW, holding(old=40)).beside == ("a",)


def test_who_is_kept_for_its_turn_keeps_it() -> None:
    old = replace(OLD, busy=True, come_cost=10.0, in_since=NOW)
    assert decide([old, NEW], NOW, holding(old=40)).activate == ()


def test_who_serves_first_is_waited_for() -> None:
    woken = replace(OLD, waiting_since=NOW)
    assert decide([woken, NEW], NOW, holding(old=40)).activate == ()


def test_an_image_fills_no_more_than_half_of_the_hosts_memory() -> None:
    image = model("new", 0, waits=True, host=10)
    assert not Moment({}, 19).holds(image, [OLD])
    assert Moment({}, 20).holds(image, [OLD])
