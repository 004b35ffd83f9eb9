# SPDX-License-Identifier: MIT
"""For how long a model keeps its place in the GPU, and who gives it up first."""

from math import inf

from .views import ModelView, Stage

# A model that has work keeps the GPU for so many times what its switch costs: with three
# models in turn, at most a fifth of the time goes into switching.
KEEP = 4.0
# An idle one may stay for so many of its usual gaps, so that one client's next request finds
# it, if that is no more than such a part of what its switch costs.
PATIENCE = 3.0
WORTH_IT = 0.3


def keeps_until(resident: ModelView, waiter: ModelView) -> float:
    """Until when the resident need not give way to a waiter whose time is not up yet."""
    least = resident.in_since + resident.min_active
    if waiter.priority > resident.priority:
        return least
    turn = resident.in_since + KEEP * resident.switch_cost
    if resident.busy:
        return max(least, inf if resident.priority > waiter.priority else turn)
    return max(least, min(turn, resident.idle_since + _patience(resident)))


def expires_at(resident: ModelView) -> float:
    """When an idle resident leaves though nobody wants its place; infinite: never."""
    if resident.ttl is None or resident.pin or resident.busy or resident.waiting_since is not None:
        return inf
    least = max(resident.may_leave_at, resident.in_since + resident.min_active)
    return max(least, max(resident.idle_since, resident.in_since) + resident.ttl)


def loss(resident: ModelView) -> tuple[bool, bool, int, float, float, str]:
    """What it costs if this one leaves; sorts the least first."""
    return (
        resident.stage is Stage.COMING or resident.waiting_since is not None,
        resident.busy,
        resident.priority,
        resident.switch_cost,
        resident.idle_since,
        resident.name,
    )


def _patience(resident: ModelView) -> float:
    """Seconds worth waiting for an idle model's next request, rather than to switch."""
    if resident.gap is None:
        return 0.0
    patience = PATIENCE * resident.gap
    return patience if patience <= WORTH_IT * resident.switch_cost else 0.0
