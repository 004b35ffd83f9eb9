# SPDX-License-Identifier: MIT
"""The real switcher keeps its rules whatever happens; and where it would not, that is seen."""

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any
from weakref import WeakSet

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from llmuxd.errors import LlmuxError
from llmuxd.model.activation import Leave, order_leave
from llmuxd.policy import ModelView, Stage
from llmuxd.switcher import Model, deciding, pauses, views
from llmuxd.switcher.admission import Admission
from llmuxd.switcher.coming import Coming
from llmuxd.switcher.leaving import Leaving
from llmuxd.switcher.models import Waiter, now

from .scenarios import Scenario, broken_rules, scenarios, tunes

EXAMPLES = max(500, settings.default.max_examples if settings.default else 0)


# A test of many examples needs more than the usual ten seconds, on a busy machine too.
@pytest.mark.seconds(EXAMPLES)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(scenarios)
def test_the_rules_hold_whatever_happens(scenario: Scenario) -> None:
    assert broken_rules(scenario) == []


@pytest.mark.seconds(EXAMPLES)
@settings(max_examples=EXAMPLES // 5, suppress_health_check=list(HealthCheck))
@given(tunes)
def test_they_hold_while_models_are_measured(scenario: Scenario) -> None:
    assert broken_rules(scenario) == []


# Mutants: each breaks a rule on purpose, and is caught


async def _no_drain(self: Leaving, model: Model) -> None:
    """Sends a model away in the middle of its answers."""


def _cut_all(self: Leaving, model: Model) -> Any:
    """Does as if an operator had said so."""
    self.cut(model)
    return _drain(self, model)


def _serve_later(self: Admission, model: Model) -> None:
    """Serves who woke the model at the second opportunity."""
    if model.backend is not None and model.waiters and model.waiters[0] not in _postponed:
        _postponed.add(model.waiters[0])
        return
    _let_in(self, model)


def _see_no_waiters(*args: Any) -> ModelView:
    """Shows policy a model that has work as one that has none."""
    found = _view(*args)
    return replace(found, waiting_since=None) if found.stage is Stage.IN else found


def _serve_one(self: Admission, model: Model) -> None:
    """Has room for one at a time."""
    if not model.in_flight:
        others = list(model.waiters)[1:]
        for _ in others:
            model.waiters.pop()
        _let_in(self, model)
        model.waiters.extend(others)


def _view_with(**more: Any) -> Callable[..., ModelView]:
    """Tells policy something else of every model."""

    def changed(*args: Any) -> ModelView:
        return replace(_view(*args), **more)

    return changed


async def _wait_for_ever(self: Admission, model: Model, waiter: Waiter) -> Any:
    """Does not miss a client that left."""
    return await waiter.admitted


def _no_pause(self: Coming, model: Model, error: LlmuxError) -> None:
    """Starts what failed again at once."""
    model.last_error = error.message


def _patient(self: Coming, model: Model, error: LlmuxError) -> None:
    """Lets everybody wait for a model that keeps failing."""
    model.may_start_at = now() + pauses.COOL_DOWN[min(model.failures, 4)]
    model.failures += 1


async def _end_and_forget_nothing(self: Leaving, model: Model, leave: Leave) -> None:
    """Leaves its orders lying about."""
    await _end(self, model, leave)
    order_leave(model.name, leave)


def _leave_late(self: Admission, model: Model) -> None:
    """Takes the last request for not the last."""
    if model.in_flight > 1:
        _leave(self, model)


_postponed: WeakSet[Waiter] = WeakSet()
_drain, _end, _let_in, _leave = Leaving._drain, Leaving.end, Admission.let_in, Admission.leave
_view = views.view

Mutant = tuple[int, object, str, object]
MUTANTS: dict[str, Mutant] = {
    "cuts what is in flight": (1, Leaving, "_drain", _no_drain),
    "cuts without an operator": (1, Leaving, "_drain", _cut_all),
    "leaves before it served": (2, Admission, "let_in", _serve_later),
    "knows no bound": (3, deciding, "view", _view_with(max_wait=inf, busy=True, come_cost=1e6)),
    "comes for a client that left": (4, Admission, "_wait", _wait_for_ever),
    "leaves for nobody": (4, deciding, "view", _view_with(ttl=0.0)),
    "starts again at once": (5, Coming, "_failed", _no_pause),
    "lets all wait for what fails": (5, Coming, "_failed", _patient),
    "serves one after the other": (6, Admission, "let_in", _serve_one),
    "believes that all are small": (7, deciding, "view", _view_with(vram=1)),
    "does not look whose GPU it is": (7, deciding, "view", _view_with(gpus=frozenset())),
    "leaves its orders behind": (8, Leaving, "end", _end_and_forget_nothing),
    "never ends a request": (8, Admission, "leave", _leave_late),
}


class Caught(Exception):
    """The rule was seen to be broken."""


@pytest.mark.seconds(EXAMPLES)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_switcher_that_breaks_a_rule_is_caught(
    mutant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, where, name, instead = MUTANTS[mutant]
    monkeypatch.setattr(where, name, instead)
    if instead is _serve_later:
        monkeypatch.setattr(deciding, "view", _see_no_waiters)

    @settings(
        max_examples=EXAMPLES, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(scenarios)
    def look(scenario: Scenario) -> None:
        if any(line.startswith(f"rule {rule} ") for line in broken_rules(scenario)):
            raise Caught(mutant)

    with pytest.raises(Caught):
        look()
