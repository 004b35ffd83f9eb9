# SPDX-License-Identifier: MIT
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmuxd.policy import Decision, ModelView, Stage, decide

NOW = 100.0


def model(
    name: str,
    stage: Stage = Stage.OUT,
    waiting: float | None = None,
    gpus: tuple[int, ...] = (0,),
    start: float = 0.0,
    leave: float = 0.0,
) -> ModelView:
    return ModelView(name, frozenset(gpus), stage, waiting, start, leave)


def now(*models: ModelView) -> Decision:
    return decide(models, NOW)


def test_nobody_waits_nothing_happens() -> None:
    assert now(model("a", Stage.IN), model("b"), model("c")) == Decision()
    assert now() == Decision()


def test_free_gpu_is_given_at_once() -> None:
    assert now(model("a", waiting=1)) == Decision(activate=("a",))


def test_the_oldest_request_goes_first() -> None:
    assert now(model("a", waiting=2), model("b", waiting=1)) == Decision(activate=("b",))
    assert now(model("a", waiting=1), model("b", waiting=2)) == Decision(activate=("a",))


def test_who_holds_the_gpu_drains_for_who_waits() -> None:
    assert now(model("a", Stage.IN), model("b", waiting=1)) == Decision(drain=("a",))


def test_one_drain_serves_one_waiter_only() -> None:
    found = now(model("a", Stage.IN), model("b", waiting=1), model("c", waiting=2))
    assert found == Decision(drain=("a",))


def test_a_model_on_its_way_is_waited_for() -> None:
    for stage in (Stage.COMING, Stage.LEAVING):
        assert now(model("a", stage), model("b", waiting=1)) == Decision()


def test_a_drain_goes_on_while_somebody_waits_for_it() -> None:
    assert now(model("a", Stage.DRAINING), model("b", waiting=1)) == Decision()


def test_a_drain_that_nobody_waits_for_is_called_back() -> None:
    assert now(model("a", Stage.DRAINING), model("b")) == Decision(call_back=("a",))
    assert now(model("a", Stage.DRAINING, waiting=1), model("b")).call_back == ("a",)


def test_a_waiter_for_another_gpu_does_not_keep_a_drain() -> None:
    found = now(model("a", Stage.DRAINING), model("b", waiting=1, gpus=(1,)))
    assert found == Decision(activate=("b",), call_back=("a",))


def test_what_leaves_is_not_called_back() -> None:
    assert now(model("a", Stage.LEAVING)) == Decision()


def test_waiters_of_the_draining_model_wait_for_their_turn() -> None:
    found = now(model("a", Stage.DRAINING, waiting=2), model("b", waiting=1))
    assert found == Decision()


def test_independent_gpus_do_not_wait_for_each_other() -> None:
    found = now(model("a", waiting=1, gpus=(0,)), model("b", waiting=2, gpus=(1,)))
    assert found == Decision(activate=("a", "b"))
    found = now(
        model("x", Stage.LEAVING, gpus=(0,)),
        model("a", waiting=1, gpus=(0,)),
        model("b", waiting=2, gpus=(1,)),
    )
    assert found == Decision(activate=("b",))


def test_all_holders_of_several_gpus_drain() -> None:
    found = now(
        model("a", Stage.IN, gpus=(0,)),
        model("b", Stage.IN, gpus=(1,)),
        model("c", Stage.IN, gpus=(2,)),
        model("big", waiting=1, gpus=(0, 1)),
    )
    assert found == Decision(drain=("a", "b"))


def test_a_small_model_does_not_slip_in_before_an_older_big_one() -> None:
    found = now(
        model("a", Stage.IN, gpus=(0,)),
        model("big", waiting=1, gpus=(0, 1)),
        model("small", waiting=2, gpus=(1,)),
    )
    assert found == Decision(drain=("a",))


def test_a_big_model_behind_a_small_one_drains_nobody_yet() -> None:
    found = now(
        model("small", waiting=1, gpus=(0,)),
        model("big", waiting=2, gpus=(0, 1)),
        model("b", Stage.IN, gpus=(1,)),
    )
    assert found == Decision(activate=("small",))


def test_model_that_failed_lately_is_passed_over_and_asked_for_later() -> None:
    found = now(model("a", waiting=1, start=NOW + 5), model("b", waiting=2))
    assert found == Decision(activate=("b",), again_at=NOW + 5)
    assert now(model("a", waiting=1, start=NOW)) == Decision(activate=("a",))


def test_nothing_drains_for_a_model_that_may_not_start() -> None:
    found = now(model("a", Stage.IN), model("b", waiting=1, start=NOW + 5))
    assert found == Decision(again_at=NOW + 5)
    found = now(model("a", Stage.DRAINING), model("b", waiting=1, start=NOW + 5))
    assert found == Decision(call_back=("a",), again_at=NOW + 5)


def test_model_that_would_not_stop_is_not_asked_again_at_once() -> None:
    found = now(model("a", Stage.IN, leave=NOW + 3), model("b", waiting=1))
    assert found == Decision(again_at=NOW + 3)
    assert now(model("a", Stage.IN, leave=NOW), model("b", waiting=1)).drain == ("a",)


def test_asked_again_at_the_first_of_all_times() -> None:
    found = now(
        model("a", Stage.IN, leave=NOW + 3),
        model("b", waiting=1),
        model("c", waiting=1, start=NOW + 2),
    )
    assert found.again_at == NOW + 2


def test_requests_of_a_model_that_is_in_hold_their_turn() -> None:
    found = now(model("a", Stage.COMING, waiting=1), model("b", waiting=2))
    assert found == Decision()


def test_model_without_gpu_never_waits() -> None:
    found = now(model("a", Stage.IN), model("b", waiting=1, gpus=()))
    assert found == Decision(activate=("b",))


_gpus = st.frozensets(st.integers(0, 3), max_size=3)
_moment = st.integers(90, 110).map(float)


@st.composite
def _worlds(draw: st.DrawFn) -> list[ModelView]:
    count = draw(st.integers(0, 6))
    return [
        ModelView(
            name=f"m{number}",
            gpus=draw(_gpus),
            stage=draw(st.sampled_from(Stage)),
            waiting_since=draw(st.none() | _moment),
            may_start_at=draw(_moment),
            may_leave_at=draw(_moment),
        )
        for number in range(count)
    ]


@given(_worlds())
def test_no_gpu_is_given_twice(models: list[ModelView]) -> None:
    found = decide(models, NOW)
    by_name = {m.name: m for m in models}
    taken = [gpu for m in models if m.stage is not Stage.OUT for gpu in m.gpus]
    given_away = [gpu for name in found.activate for gpu in by_name[name].gpus]
    assert len(given_away) == len(set(given_away))
    assert not set(taken) & set(given_away)


@given(_worlds())
def test_each_model_is_told_one_thing_that_it_can_do(models: list[ModelView]) -> None:
    found = decide(models, NOW)
    by_name = {m.name: m for m in models}
    told = [*found.activate, *found.drain, *found.call_back]
    assert len(told) == len(set(told))
    for name in found.activate:
        assert by_name[name].stage is Stage.OUT
        assert by_name[name].waiting_since is not None
        assert by_name[name].may_start_at <= NOW
    for name in found.drain:
        assert by_name[name].stage is Stage.IN
        assert by_name[name].may_leave_at <= NOW
    for name in found.call_back:
        assert by_name[name].stage is Stage.DRAINING


@given(_worlds())
def test_nobody_overtakes_on_a_shared_gpu(models: list[ModelView]) -> None:
    found = decide(models, NOW)
    by_name = {m.name: m for m in models}
    for name in found.activate:
        mine = by_name[name]
        assert mine.waiting_since is not None
        for other in models:
            if other.waiting_since is not None and other.may_start_at <= NOW:
                earlier = (other.waiting_since, other.name) < (mine.waiting_since, name)
                assert not (earlier and other.gpus & mine.gpus)


@given(_worlds())
def test_nobody_drains_for_nobody(models: list[ModelView]) -> None:
    found = decide(models, NOW)
    for name in found.drain:
        mine = next(m for m in models if m.name == name)
        assert any(
            m.gpus & mine.gpus and m.stage is Stage.OUT and m.waiting_since is not None
            for m in models
        )


@given(_worlds())
def test_who_may_go_first_goes_or_somebody_moves_for_it(models: list[ModelView]) -> None:
    """The oldest of all waiters is never forgotten: it starts, or what is in its way moves."""
    found = decide(models, NOW)
    ready = [m for m in models if m.waiting_since is not None and m.may_start_at <= NOW]
    first = min(ready, key=lambda m: (m.waiting_since or 0.0, m.name), default=None)
    if first is None or first.stage is not Stage.OUT:
        return
    blockers = [m for m in models if m.stage is not Stage.OUT and m.gpus & first.gpus]
    if not blockers:
        assert first.name in found.activate
    # One that comes, serves first or may not leave yet: until then the others stay, too.
    stuck = any(
        m.stage is Stage.COMING
        or (m.stage is Stage.IN and (m.waiting_since is not None or m.may_leave_at > NOW))
        for m in blockers
    )
    for blocker in blockers:
        if blocker.waiting_since is not None and blocker.stage is Stage.IN:
            assert blocker.name not in found.drain  # it serves first
            continue
        if blocker.stage is Stage.IN and blocker.may_leave_at <= NOW and not stuck:
            assert blocker.name in found.drain
        if blocker.stage is Stage.IN and blocker.may_leave_at > NOW:
            assert found.again_at is not None and found.again_at <= blocker.may_leave_at
        assert blocker.name not in found.call_back


@given(_worlds())
def test_asked_again_only_in_the_future(models: list[ModelView]) -> None:
    again_at = decide(models, NOW).again_at
    assert again_at is None or again_at > NOW


@given(_worlds())
def test_order_of_the_models_does_not_matter(models: list[ModelView]) -> None:
    found = decide(models, NOW)
    turned = decide(models[::-1], NOW)
    assert found.activate == turned.activate
    assert set(found.drain) == set(turned.drain)
    assert set(found.call_back) == set(turned.call_back)
    assert found.again_at == turned.again_at


@given(_worlds())
def test_a_world_without_faults_ends_with_everybody_served(models: list[ModelView]) -> None:
    """Carry the decisions out to the end: each waiter gets in, in bounded time."""
    world = {m.name: replace(m, may_start_at=0.0, may_leave_at=0.0) for m in models}
    for _ in range(10 * len(world) + 10):
        for m in world.values():
            if m.stage is Stage.IN and m.waiting_since is not None:
                world[m.name] = replace(m, waiting_since=None)
        if all(m.waiting_since is None for m in world.values()):
            return
        found = decide(list(world.values()), NOW)
        for name in found.call_back:
            world[name] = replace(world[name], stage=Stage.IN)
        for name, m in list(world.items()):
            if m.stage in (Stage.DRAINING, Stage.LEAVING) and name not in found.call_back:
                world[name] = replace(m, stage=Stage.OUT)
            if m.stage is Stage.COMING:
                world[name] = replace(m, stage=Stage.IN)
        for name in found.drain:
            world[name] = replace(world[name], stage=Stage.DRAINING)
        for name in found.activate:
            world[name] = replace(world[name], stage=Stage.COMING)
    raise AssertionError(f"still waiting: {world}")
