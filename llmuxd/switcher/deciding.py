# SPDX-License-Identifier: MIT
"""What policy is told of the models, and what is made of its answer."""

import logging

from .. import memory, policy
from ..model.activation import Leave
from ..policy import Stage
from ..state import State
from .admission import Admission
from .coming import Coming
from .fleet import Fleet
from .leaving import Leaving
from .models import Model, now
from .transitions import Transitions

log = logging.getLogger(__name__)


class Decider:
    """Takes one step whenever something changed."""

    def __init__(
        self,
        fleet: Fleet,
        admission: Admission,
        transitions: Transitions,
        coming: Coming,
        leaving: Leaving,
    ):
        self._fleet = fleet
        self._admission = admission
        self._transitions = transitions
        self._coming = coming
        self._leaving = leaving

    def step(self) -> float | None:
        """Decide and begin what is to be done; the seconds until the next step is due anyhow."""
        models = self._fleet.models
        for model in models.values():
            self._admission.let_in(model)
            if self._needs_backend(model):
                self._transitions.begin(model, Stage.COMING, self._coming.connect(model))
        time = now()
        decision = policy.decide([self._view(model) for model in models.values()], time)
        for name in decision.call_back:
            self._transitions.call_back(models[name])
        for name in decision.drain:
            model = models[name]
            self._transitions.begin(model, Stage.DRAINING, self._leaving.make_room(model))
        for name in decision.activate:
            model = models[name]
            self._transitions.begin(model, Stage.COMING, self._coming.activate(model))
        self._spill()
        due = [model.connect_at for model in models.values() if model.connect_at > time]
        if decision.again_at is not None:
            due.append(decision.again_at)
        return max(min(due) - time, 0.0) if due else None

    def _view(self, model: Model) -> policy.ModelView:
        stage = self._fleet.stage(model)
        return policy.ModelView(
            name=model.name,
            # What it holds was decided when it came up; a reload changes the next time only.
            gpus=frozenset(model.config.gpus if stage is Stage.OUT else model.held),
            stage=stage,
            waiting_since=model.waiters[0].arrived if model.waiters else None,
            may_start_at=model.may_start_at,
            may_leave_at=model.may_leave_at,
        )

    def _needs_backend(self, model: Model) -> bool:
        unit = self._fleet.units.status(model.name)
        return (
            unit.up
            and not unit.frozen
            and model.backend is None
            and model.transition is None
            and now() >= model.connect_at
        )

    def _spill(self) -> None:
        """Where memory is short, the parked model that was used least lately goes to disk."""
        models = self._fleet.models.values()
        parked = [
            model
            for model in models
            if self._fleet.state(model) is State.PARKED
            and model.transition is None
            and model.may_leave_at <= now()
        ]
        # One at a time: what the one before gave back is not known until it is gone.
        leaving = any(model.moving is Stage.LEAVING for model in models)
        if parked and not leaving and memory.short():
            model = min(parked, key=lambda model: model.last_used)
            log.info("%s: memory is short, from parked to disk", model.name)
            work = self._leaving.end(model, Leave.CHECKPOINT)
            self._transitions.begin(model, Stage.LEAVING, work)
