# SPDX-License-Identifier: MIT
import itertools

import pytest

from llmuxd.state import State, UnitStatus, derive


@pytest.mark.parametrize(
    ("unit", "has_checkpoint", "leaving", "state"),
    [
        (UnitStatus(), False, False, State.COLD),
        (UnitStatus(), True, False, State.CHECKPOINTED),
        (UnitStatus("active", "running"), True, False, State.SERVING),
        (UnitStatus("reloading"), False, False, State.SERVING),
        (UnitStatus("active", "running"), False, True, State.DRAINING),
        (UnitStatus("active", freezer="frozen"), False, False, State.PARKED),
        (UnitStatus("active", freezer="freezing"), False, False, State.PARKED),
        (UnitStatus("active", freezer="frozen-by-parent"), False, True, State.PARKED),
        (UnitStatus("active", freezer="thawing"), False, False, State.SERVING),
        (UnitStatus("activating", "start"), True, False, State.STARTING),
        (UnitStatus("deactivating", "stop"), True, False, State.DRAINING),
        (UnitStatus("failed", result="exit-code"), False, False, State.FAILED),
        (UnitStatus("failed"), True, False, State.FAILED),
        (UnitStatus("maintenance"), False, False, State.COLD),
    ],
)
def test_state_follows_from_what_is_seen(
    unit: UnitStatus, has_checkpoint: bool, leaving: bool, state: State
) -> None:
    assert derive(unit, has_checkpoint=has_checkpoint, leaving=leaving) is state


def test_words_of_a_newer_systemd_are_no_crash_and_not_serving() -> None:
    for known, leaving in itertools.product((False, True), repeat=2):
        found = derive(UnitStatus("levitating"), has_checkpoint=known, leaving=leaving)
        assert found is State.STARTING


@pytest.mark.parametrize("active", ["inactive", "failed"])
def test_down_means_no_process(active: str) -> None:
    assert UnitStatus(active).down and not UnitStatus(active).up


@pytest.mark.parametrize("active", ["activating", "deactivating", "maintenance"])
def test_between_is_neither_up_nor_down(active: str) -> None:
    assert not UnitStatus(active).down and not UnitStatus(active).up


def test_names_that_users_see() -> None:
    assert [state.value for state in State] == [
        "cold", "checkpointed", "parked", "starting", "serving", "draining", "failed",
    ]  # fmt: skip
