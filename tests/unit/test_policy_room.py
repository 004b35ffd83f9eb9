# SPDX-License-Identifier: MIT
from llmuxd.policy import Board, Decision, Gpu, ModelView, NoRoom, Stage, decide

NOW = 100.0
GIB = 1 << 30
H100 = {0: Gpu(80 * GIB), 1: Gpu(80 * GIB)}


def model(
    name: str,
    gib: int | None,
    stage: Stage = Stage.OUT,
    waiting: float | None = None,
    gpus: tuple[int, ...] = (0,),
    pin: bool = False,
    busy: bool = False,
    come: float = 0.0,
    priority: int = 0,
    idle: float = 0.0,
) -> ModelView:
    return ModelView(
        name,
        frozenset(gpus),
        stage,
        waiting,
        vram=None if gib is None else gib * GIB,
        pin=pin,
        busy=busy,
        come_cost=come,
        priority=priority,
        idle_since=idle,
    )


def now(*models: ModelView, gpus: dict[int, Gpu] = H100) -> Decision:
    return decide(models, NOW, gpus)


# Together


def test_models_that_fit_together_stay_together() -> None:
    found = now(model("a", 40, Stage.IN), model("b", 40, waiting=1))
    assert found == Decision(activate=("b",))


def test_two_that_wait_come_together_where_both_fit() -> None:
    found = now(model("a", 40, waiting=1), model("b", 40, waiting=2), model("c", 1, waiting=3))
    assert found == Decision(activate=("a", "b"))


def test_one_byte_too_many_takes_turns() -> None:
    b = ModelView("b", frozenset({0}), Stage.OUT, 1, vram=40 * GIB + 1)
    assert now(model("a", 40, Stage.IN), b) == Decision(drain=("a",))


def test_who_says_no_size_shares_with_nobody() -> None:
    assert now(model("a", None, Stage.IN), model("b", 1, waiting=1)).drain == ("a",)
    assert now(model("a", 1, Stage.IN), model("b", None, waiting=1)).drain == ("a",)


def test_a_gpu_of_unknown_size_is_shared_by_nobody() -> None:
    found = now(model("a", 1, Stage.IN), model("b", 1, waiting=1), gpus={})
    assert found == Decision(drain=("a",))


def test_memory_of_other_processes_counts() -> None:
    gpus = {0: Gpu(80 * GIB, foreign=1 * GIB)}
    found = now(model("a", 40, Stage.IN), model("b", 40, waiting=1), gpus=gpus)
    assert found == Decision(drain=("a",))


def test_it_must_fit_on_each_of_its_gpus() -> None:
    found = now(
        model("a", 40, Stage.IN, gpus=(0,)),
        model("b", 60, Stage.IN, gpus=(1,)),
        model("big", 40, waiting=1, gpus=(0, 1)),
    )
    assert found == Decision(drain=("b",))


def test_the_room_of_who_leaves_is_waited_for() -> None:
    found = now(model("a", 60, Stage.LEAVING), model("b", 40, waiting=1))
    assert found == Decision()


def test_a_small_one_behind_does_not_take_the_room_of_an_older_one() -> None:
    found = now(model("a", 60, Stage.LEAVING), model("b", 70, waiting=1), model("c", 15, waiting=2))
    assert found == Decision()
    found = now(model("a", 60, Stage.LEAVING), model("b", 70, waiting=1), model("c", 10, waiting=2))
    assert found == Decision(activate=("c",))


def test_a_drain_goes_back_where_the_others_fit_without_it() -> None:
    found = now(model("a", 40, Stage.DRAINING), model("b", 40, waiting=1))
    assert found == Decision(activate=("b",), call_back=("a",))
    found = now(model("a", 60, Stage.DRAINING), model("b", 40, waiting=1))
    assert found == Decision()


# Who leaves


def test_the_idle_one_leaves_before_the_busy_one() -> None:
    found = now(
        model("a", 40, Stage.IN, busy=True),
        model("b", 40, Stage.IN, come=60),
        model("c", 30, waiting=1),
    )
    assert found.drain == ("b",)


def test_who_is_brought_back_cheaply_leaves_first() -> None:
    found = now(
        model("a", 40, Stage.IN, come=60),
        model("b", 40, Stage.IN, come=2),
        model("c", 30, waiting=1),
    )
    assert found.drain == ("b",)


def test_low_priority_leaves_first() -> None:
    found = now(
        model("a", 40, Stage.IN, priority=1, idle=1),
        model("b", 40, Stage.IN, priority=0, idle=50),
        model("c", 30, waiting=1),
    )
    assert found.drain == ("b",)


def test_who_was_used_longest_ago_leaves_first() -> None:
    found = now(
        model("a", 40, Stage.IN, idle=50),
        model("b", 40, Stage.IN, idle=20),
        model("c", 30, waiting=1),
    )
    assert found.drain == ("b",)


def test_nobody_leaves_for_nothing() -> None:
    """The small one goes first by its cost, but the large one has to go and suffices."""
    found = now(
        model("small", 10, Stage.IN, come=1),
        model("large", 60, Stage.IN, come=50),
        model("c", 65, waiting=1),
    )
    assert found.drain == ("large",)


def test_as_many_leave_as_must() -> None:
    found = now(
        model("a", 20, Stage.IN, come=1),
        model("b", 20, Stage.IN, come=2),
        model("d", 20, Stage.IN, come=3),
        model("c", 50, waiting=1),
    )
    assert set(found.drain) == {"a", "b"}


# Who never fits


def test_a_pinned_model_is_never_sent_away() -> None:
    found = now(
        model("a", 40, Stage.IN, pin=True, come=1),
        model("b", 40, Stage.IN, come=20, busy=True),
        model("c", 30, waiting=1),
    )
    assert found.drain == ("b",)


def test_larger_than_the_gpu_is_refused() -> None:
    found = now(model("a", 100, waiting=1), model("b", 40, waiting=2))
    verdict = NoRoom("a", 0, 100 * GIB, 20 * GIB, 0)
    assert found == Decision(activate=("b",), refuse=(verdict,))
    assert "20.0 GiB more than it can have" in verdict.reason


def test_a_decision_does_not_tell_who_was_looked_at_first() -> None:
    a, b = model("a", 100, waiting=1), model("b", 100, waiting=2)
    assert now(a, b) == now(b, a)


def test_the_verdict_says_who_holds_what() -> None:
    gpus = {0: Gpu(80 * GIB, foreign=10 * GIB)}
    found = now(model("a", 40, Stage.IN, pin=True), model("b", 40, waiting=1), gpus=gpus)
    (verdict,) = found.refuse
    assert verdict == NoRoom("b", 0, 40 * GIB, 10 * GIB, 10 * GIB, (("a", 40 * GIB),))
    assert verdict.reason == (
        "'b' needs 40.0 GiB of GPU 0, 10.0 GiB more than it can have:"
        " 'a' (pinned) holds 40.0 GiB; processes that are no model hold 10.0 GiB"
    )


def test_nobody_comes_beside_a_pinned_model_that_has_the_whole_gpu() -> None:
    found = now(model("a", None, Stage.IN, pin=True), model("b", 10, waiting=1))
    assert [verdict.missing for verdict in found.refuse] == [10 * GIB]
    found = now(model("a", 10, Stage.IN, pin=True), model("b", None, waiting=1))
    assert found.refuse == (NoRoom("b", 0, None, None, 0, (("a", 10 * GIB),)),)


def test_a_pinned_model_that_is_out_takes_nothing() -> None:
    found = now(model("a", None, pin=True), model("b", None, waiting=1))
    assert found == Decision(activate=("b",))


def test_a_verdict_ends_when_there_is_room() -> None:
    board = Board({0: Gpu(80 * GIB, foreign=50 * GIB)})
    board.put(model("a", 40, waiting=1))
    assert board.decide(NOW).refuse != ()
    board.measure({0: Gpu(80 * GIB)})
    assert board.decide(NOW) == Decision(activate=("a",))
    board.put(model("p", 60, Stage.IN, pin=True))
    assert [verdict.model for verdict in board.decide(NOW).refuse] == ["a"]
    board.remove("p")
    assert board.decide(NOW) == Decision(activate=("a",))


# What was measured


def shared(foreign: int = 0, hidden: int = 0, **held: int) -> dict[int, Gpu]:
    """An H100 with so many GiB in use."""
    sizes = {name: gib * GIB for name, gib in held.items()}
    return {0: Gpu(80 * GIB, foreign * GIB, hidden * GIB, held=sizes)}


def test_a_model_takes_what_it_holds_where_that_is_more_than_it_says() -> None:
    a, b = model("a", 30, Stage.IN), model("b", 40, waiting=1)
    assert now(a, b, gpus=shared(a=40)).activate == ("b",)
    assert now(a, b, gpus=shared(a=41)) == Decision(drain=("a",))


def test_a_model_that_is_out_and_holds_memory_is_in_the_way() -> None:
    a, b = model("a", 40), model("b", 50, waiting=1)
    (verdict,) = now(a, b, gpus=shared(a=40)).refuse
    assert (verdict.missing, verdict.foreign) == (10 * GIB, 40 * GIB)
    assert verdict.reason == (
        "'b' needs 50.0 GiB of GPU 0, 10.0 GiB more than it can have:"
        " 'a' (not in use) holds 40.0 GiB"
    )


def test_nobody_is_in_its_own_way() -> None:
    assert now(model("a", 50, waiting=1), gpus=shared(a=50)) == Decision(activate=("a",))
    (verdict,) = now(model("a", 50, waiting=1), gpus=shared(a=81)).refuse
    assert (verdict.needed, verdict.missing, verdict.others) == (81 * GIB, GIB, ())


def test_what_a_model_held_is_room_once_it_is_gone() -> None:
    board = Board(shared(a=40))
    board.put(model("a", 40, Stage.LEAVING))
    board.put(model("b", 50, waiting=1))
    assert board.decide(NOW) == Decision()
    board.measure(shared())
    board.put(model("a", 40))
    assert board.decide(NOW) == Decision(activate=("b",))


def test_a_verdict_follows_who_comes_in() -> None:
    """Held by one that is out it is lost; held by one that is in it can be had."""
    board = Board(shared(a=40))
    board.put(model("a", 40))
    board.put(model("b", 50, waiting=1))
    assert board.decide(NOW).refuse != ()
    board.put(model("a", 40, Stage.IN))
    assert board.decide(NOW) == Decision(drain=("a",))
    board.remove("a")
    assert board.decide(NOW).refuse != ()


def test_memory_that_nobody_is_seen_to_hold_is_the_models_that_are_in() -> None:
    """As in another pid namespace; what is beyond what they say is somebody else's."""
    a = model("a", 40, Stage.IN)
    assert now(a, model("b", 35, waiting=1), gpus=shared(45, hidden=45)).activate == ("b",)
    assert now(a, model("b", 36, waiting=1), gpus=shared(45, hidden=45)).drain == ("a",)
    assert now(model("b", 36, waiting=1), gpus=shared(45, hidden=45)).refuse != ()


def test_the_verdict_names_the_largest_holders() -> None:
    others = tuple((f"python3 (PID {pid})", pid * GIB) for pid in (20, 10, 6, 5))
    gpus = {0: Gpu(80 * GIB, 42 * GIB, GIB, others)}
    (verdict,) = now(model("a", 40, waiting=1), gpus=gpus).refuse
    assert verdict.reason == (
        "'a' needs 40.0 GiB of GPU 0, 2.0 GiB more than it can have: python3 (PID 20) holds"
        " 20.0 GiB; python3 (PID 10) holds 10.0 GiB; python3 (PID 6) holds 6.0 GiB;"
        " others hold 6.0 GiB"
    )


def test_a_pinned_model_counts_as_what_it_holds() -> None:
    pinned = model("p", 30, Stage.IN, pin=True)
    board = Board(shared(p=30))
    board.put(pinned)
    board.put(model("a", 50, waiting=1))
    assert board.decide(NOW) == Decision(activate=("a",))
    board.measure(shared(p=31))
    (verdict,) = board.decide(NOW).refuse
    assert verdict.missing == GIB
