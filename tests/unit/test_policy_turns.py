# SPDX-License-Identifier: MIT
"""When who has the GPU gives it up."""

from llmuxd.policy import Decision, ModelView, Stage, decide
from llmuxd.policy.tenure import KEEP, PATIENCE

NOW = 100.0


def resident(
    name: str = "a",
    *,
    busy: bool = True,
    since: float = 90.0,
    idle: float = 0.0,
    cost: float = 0.0,
    gap: float | None = None,
    priority: int = 0,
    waiting: float | None = None,
    min_active: float = 0.0,
    ttl: float | None = None,
    pin: bool = False,
    may_leave: float = 0.0,
) -> ModelView:
    return ModelView(
        name,
        frozenset({0}),
        Stage.IN,
        waiting,
        may_leave_at=may_leave,
        busy=busy,
        in_since=since,
        idle_since=idle,
        come_cost=cost,
        gap=gap,
        priority=priority,
        min_active=min_active,
        ttl=ttl,
        pin=pin,
    )


def waiter(
    name: str = "b",
    since: float = 95.0,
    *,
    max_wait: float = 1000.0,
    cost: float = 0.0,
    priority: int = 0,
) -> ModelView:
    return ModelView(
        name,
        frozenset({0}),
        Stage.OUT,
        since,
        come_cost=cost,
        max_wait=max_wait,
        priority=priority,
    )


def now(*models: ModelView) -> Decision:
    return decide(models, NOW)


def test_a_busy_model_keeps_the_gpu_in_proportion_to_its_cost() -> None:
    found = now(resident(cost=5.0), waiter())
    assert found == Decision(again_at=90 + KEEP * 5)
    found = now(resident(cost=10 / KEEP), waiter())
    assert found.drain == ("a",)


def test_an_idle_model_makes_way_at_once() -> None:
    assert now(resident(cost=50.0, busy=False), waiter()).drain == ("a",)


def test_an_idle_model_is_waited_for_where_its_next_request_is_near() -> None:
    found = now(resident(cost=50.0, busy=False, idle=99.0, gap=1.0), waiter())
    assert found == Decision(again_at=99 + PATIENCE)
    assert now(resident(cost=50.0, busy=False, idle=96.0, gap=1.0), waiter()).drain == ("a",)


def test_patience_ends_with_the_turn() -> None:
    found = now(
        resident(cost=50.0, since=NOW - KEEP * 50, busy=False, idle=99.0, gap=1.0), waiter()
    )
    assert found.drain == ("a",)


def test_a_long_gap_is_not_worth_to_wait_for() -> None:
    assert now(resident(cost=50.0, busy=False, idle=99.0, gap=30.0), waiter()).drain == ("a",)


def test_max_wait_ends_every_turn() -> None:
    found = now(resident(cost=50.0), waiter(max_wait=60.0))
    assert found == Decision(again_at=95 + 60)
    assert now(resident(cost=50.0), waiter(max_wait=5.0)).drain == ("a",)


def test_the_switch_begins_early_enough_for_what_leaving_takes() -> None:
    slow = ModelView(
        "a", frozenset({0}), Stage.IN, busy=True, in_since=90, come_cost=50, leave_cost=20
    )
    assert now(slow, waiter(max_wait=60.0)).again_at == 95 + 60 - 20
    assert now(slow, waiter(max_wait=25.0)).drain == ("a",)


def test_the_switch_begins_early_enough_for_all_that_wait() -> None:
    line = [waiter(name, max_wait=60.0, cost=10.0) for name in "bcd"]
    found = now(resident(cost=50.0), *line)
    assert found == Decision(again_at=95 + 60 - 20)
    assert now(resident(cost=50.0), *(waiter(n, max_wait=25.0, cost=10.0) for n in "bcd")).drain


def test_who_cannot_wait_goes_before_priority() -> None:
    found = decide(
        [waiter("b", 95.0, priority=5), waiter("c", 96.0, max_wait=4.0)],
        NOW,
    )
    assert found.activate == ("c",)


def test_priority_goes_before_order() -> None:
    found = decide([waiter("b", 95.0), waiter("c", 96.0, priority=1)], NOW)
    assert found.activate == ("c",)


def test_priority_does_not_wait_for_the_turn_of_a_lesser_one() -> None:
    assert now(resident(cost=50.0), waiter(priority=1)).drain == ("a",)


def test_a_lesser_one_waits_while_a_greater_has_work() -> None:
    found = now(resident(cost=1.0, since=0, priority=1), waiter(max_wait=60.0))
    assert found == Decision(again_at=155)
    assert now(resident(cost=1.0, since=0, priority=1, busy=False), waiter()).drain == ("a",)


def test_min_active_is_kept() -> None:
    found = now(resident(busy=False, min_active=30.0), waiter(priority=1))
    assert found == Decision(again_at=120)


def test_a_model_that_was_woken_serves_before_it_leaves() -> None:
    assert now(resident(waiting=99.0), waiter(max_wait=1.0)) == Decision()


def test_none_of_two_leaves_before_both_may() -> None:
    big = ModelView("big", frozenset({0, 1}), Stage.OUT, 95.0)
    other = ModelView("other", frozenset({1}), Stage.IN)
    assert now(resident(cost=5.0), other, big) == Decision(again_at=110)


# An idle model's end


def test_an_idle_model_leaves_after_its_ttl() -> None:
    assert now(resident(busy=False, idle=95.0, ttl=10.0)) == Decision(again_at=105)
    assert now(resident(busy=False, idle=90.0, ttl=10.0)) == Decision(drain=("a",))


def test_a_model_that_nobody_used_has_its_ttl_from_when_it_came() -> None:
    assert now(resident(busy=False, since=95.0, ttl=10.0)) == Decision(again_at=105)


def test_neither_the_busy_nor_the_pinned_nor_the_wanted_end() -> None:
    assert now(resident(busy=True, ttl=1.0)) == Decision()
    assert now(resident(busy=False, ttl=1.0, pin=True)) == Decision()
    assert now(resident(busy=False, ttl=1.0, waiting=99.0)) == Decision()


def test_one_that_would_not_leave_is_asked_again_later() -> None:
    assert now(resident(busy=False, ttl=1.0, may_leave=103.0)) == Decision(again_at=103)


def test_a_drain_at_the_end_of_the_ttl_goes_on() -> None:
    expired = ModelView("a", frozenset({0}), Stage.DRAINING, ttl=1.0)
    assert now(expired) == Decision()
    wanted = ModelView("a", frozenset({0}), Stage.DRAINING, 99.0, ttl=1.0)
    assert now(wanted).call_back == ("a",)
