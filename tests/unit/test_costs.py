# SPDX-License-Identifier: MIT
import json

from hypothesis import given
from hypothesis import strategies as st

from llmuxd.costs import SAMPLES, Cost, Costs
from llmuxd.needs import Needs


def learnt(*seconds: float) -> Costs:
    costs = Costs()
    for each in seconds:
        costs.learn("a", Cost.RESTORE, each)
    return costs


def test_nothing_is_known_of_what_was_never_measured() -> None:
    assert Costs().known("a", Cost.RESTORE) is None
    assert Costs().expect("a", Cost.RESTORE, otherwise=7.0) == 7.0
    assert Costs().at_worst("a", Cost.RESTORE) == 0.0
    assert learnt(5.0).known("a", Cost.COLD) is None


def test_one_measurement_is_believed() -> None:
    assert learnt(5.0).expect("a", Cost.RESTORE) == 5.0
    assert learnt(5.0).at_worst("a", Cost.RESTORE) == 5.0


def test_outliers_change_little() -> None:
    costs = learnt(5.0, 5.1, 300.0, 4.9, 5.2, 0.0, 5.0)
    assert costs.known("a", Cost.RESTORE) == 5.0
    assert costs.at_worst("a", Cost.RESTORE) == 5.2


def test_a_lasting_change_is_learnt() -> None:
    assert learnt(*[50.0] * 100, *[2.0] * 4).known("a", Cost.RESTORE) == 2.0


def test_what_other_models_take_is_the_first_guess() -> None:
    costs = learnt(5.0)
    costs.learn("b", Cost.RESTORE, 7.0)
    assert costs.expect("c", Cost.RESTORE, otherwise=99.0) == 6.0
    assert costs.known("c", Cost.RESTORE) is None


def test_a_forgotten_model_is_unknown_again() -> None:
    costs = learnt(5.0)
    costs.forget("a")
    costs.forget("never seen")
    assert costs.known("a", Cost.RESTORE) is None


def test_measurements_that_cannot_be_are_ignored() -> None:
    costs = learnt(float("nan"), float("inf"), -1.0)
    assert costs.to_json() == {}


def test_a_damaged_file_loses_only_what_is_damaged() -> None:
    raw = {
        "a": {"restore": [5.0, "x", None], "flight": [1.0], "out": 3},
        "b": [1.0],
        "c": {"cold": [60]},
    }
    costs = Costs.from_json(raw)
    assert costs.to_json() == {"a": {"restore": [5.0]}, "c": {"cold": [60.0]}}


@given(
    st.dictionaries(
        st.text(),
        st.dictionaries(
            st.sampled_from(Cost), st.lists(st.floats(0, 1e6), min_size=1, max_size=20)
        ),
    )
)
def test_survives_a_file(measured: dict[str, dict[Cost, list[float]]]) -> None:
    costs = Costs()
    for model, by_cost in measured.items():
        for cost, samples in by_cost.items():
            for seconds in samples:
                costs.learn(model, cost, seconds)
    raw = json.loads(json.dumps(costs.to_json()))
    again = Costs.from_json(raw)
    assert again.to_json() == raw
    for model, by_cost in measured.items():
        for cost, samples in by_cost.items():
            assert again.known(model, cost) == costs.known(model, cost)
            assert again.at_worst(model, cost) <= max(samples[-SAMPLES:])


def test_the_most_that_was_held_is_what_is_needed() -> None:
    needs = Needs()
    assert needs.known("a") is None
    assert needs.learn("a", 2) and not needs.learn("a", 1)
    needs.learn("b", 5)
    again = Needs.from_json({**needs.to_json(), "c": "much", "d": None})
    assert [again.known(name) for name in "abcd"] == [2, 5, None, None]
    again.forget("a")
    assert again.known("a") is None
