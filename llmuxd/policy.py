# SPDX-License-Identifier: MIT
"""Who gets the GPUs next. Pure: everything it knows is in its arguments, the clock included."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto


class Stage(Enum):
    """Where a model is on its way in and out of the GPU."""

    OUT = auto()
    COMING = auto()
    IN = auto()
    DRAINING = auto()  # gives up the GPU once its requests ended; can still be called back
    LEAVING = auto()


@dataclass(frozen=True)
class ModelView:
    """What the policy sees of a model. Times are in seconds of one monotonic clock.

    `waiting_since`: arrival of the oldest request, or operator's wish, that needs the model
    active and has not got it; None where nobody waits. `may_start_at`: not to be started before
    (it failed lately). `may_leave_at`: not to be asked to leave before.
    """

    name: str
    gpus: frozenset[int]
    stage: Stage
    waiting_since: float | None = None
    may_start_at: float = 0.0
    may_leave_at: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What to do now, and when to ask again even if nothing happens (None: no need)."""

    activate: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    call_back: tuple[str, ...] = ()
    again_at: float | None = None


def decide(models: Sequence[ModelView], now: float) -> Decision:
    """Serve the waiting models in the order of their oldest request.

    A model that shares a GPU with the one whose turn it is drains; one that waits behind it for
    the same GPU does not overtake. A drain that nobody waits for any more is called back.
    """
    activate: list[str] = []
    drain: list[str] = []
    again_at: list[float] = []
    claimed: set[int] = set()  # by an earlier waiter, or by whom was just let in
    wanted: set[int] = set()
    holders = [model for model in models if model.stage is not Stage.OUT]
    for model in sorted(_waiting(models), key=lambda model: (model.waiting_since, model.name)):
        if model.may_start_at > now:
            again_at.append(model.may_start_at)
            continue
        overtakes = bool(claimed & model.gpus)
        claimed |= model.gpus
        if model.stage in (Stage.COMING, Stage.IN):
            continue
        wanted |= model.gpus
        if overtakes or model.stage is not Stage.OUT:
            continue
        blockers = [holder for holder in holders if holder.gpus & model.gpus]
        if not blockers:
            activate.append(model.name)
        for blocker in blockers:
            if blocker.stage is not Stage.IN:
                continue
            if blocker.may_leave_at > now:
                again_at.append(blocker.may_leave_at)
            else:
                drain.append(blocker.name)
    others = [model for model in models if model.stage is Stage.DRAINING]
    call_back = [model.name for model in others if not _wanted_by_another(model, models, now)]
    return Decision(
        tuple(activate),
        tuple(dict.fromkeys(drain)),
        tuple(call_back),
        min(again_at, default=None),
    )


def _waiting(models: Sequence[ModelView]) -> list[ModelView]:
    return [model for model in models if model.waiting_since is not None]


def _wanted_by_another(model: ModelView, models: Sequence[ModelView], now: float) -> bool:
    return any(
        other.name != model.name
        and other.gpus & model.gpus
        and other.may_start_at <= now
        and other.stage in (Stage.OUT, Stage.LEAVING)
        for other in _waiting(models)
    )
