# SPDX-License-Identifier: MIT
"""What the proxy, the control plane and the daemon call."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from .. import hold
from ..backend import Backend
from ..config import Config, ModelConfig, Tier
from ..costs import Cost
from ..errors import LlmuxError, Stopping
from ..events import Event, about
from ..jobs import Job, Jobs
from ..model.activation import Leave, forget_leave, take_park_order
from ..model.tuning import Figures, LettingGo, usual
from ..policy import Gpu
from ..state import State
from ..units import Units
from . import pauses
from .admission import Admission, was_removed
from .coming import Coming
from .costbook import CostBook
from .deciding import Decider, Gauge
from .fleet import Fleet
from .following import Following
from .leaving import Leaving
from .models import Model, Wish, now
from .operators import Operators
from .preloading import Preloading
from .succession import Succession
from .tasks import Tasks
from .transitions import Transitions

log = logging.getLogger(__name__)


class Switcher:
    """All models. Each of `listeners` is told the name of a model when something of it changed.

    `gauge` is asked for the GPUs' memory when a model that says `vram` is to come in after
    another one left; what changes besides is told by `measure`.
    """

    def __init__(self, config: Config, units: Units, gauge: Gauge | None = None):
        self._tasks = Tasks()
        self._fleet = Fleet(config, units, self._tasks)
        self._book = CostBook()
        self._admission = Admission(self._fleet, self._book)
        self._transitions = Transitions(self._fleet, self._tasks)
        self._succession = Succession(self._tasks)
        self._leaving = Leaving(self._fleet, self._tasks, self._book, self._succession)
        following = Following(
            self._fleet,
            self._tasks,
            self._admission,
            self._transitions,
            self._leaving,
            self._succession,
        )
        self._decider = Decider(
            self._fleet,
            self._admission,
            self._transitions,
            Coming(self._fleet, self._admission, self._book, self._succession),
            self._leaving,
            following,
            self._book,
            gauge,
        )
        self._operators = Operators(
            self._fleet,
            self._tasks,
            self._admission,
            self._transitions,
            self._leaving,
            following,
            self._book,
            self._decider.could_meet,
            self._decider.why_no_dump,
        )
        self._preloading = Preloading(self._fleet, self._operators, self._decider)

    # What others read

    @property
    def config(self) -> Config:
        """What runs now."""
        return self._fleet.config

    @property
    def jobs(self) -> Jobs:
        """What operators asked for and is not done yet."""
        return self._operators.jobs

    @property
    def listeners(self) -> list[Callable[[str], None]]:
        """Who is told; add to it."""
        return self._fleet.listeners

    @property
    def learnt(self) -> list[Callable[[str, Cost, float], None]]:
        """Who is told what a move took: model, cost, seconds; add to it."""
        return self._book.listeners

    @property
    def attached(self) -> bool:
        """Whether systemd is heard."""
        return self._fleet.units.attached

    def names(self) -> list[str]:
        """The names of all models, in the order of the configuration."""
        return list(self._fleet.models)

    def model(self, name: str) -> Model:
        """The model of this name (no alias)."""
        return self._fleet.get(name)

    def state(self, name: str) -> State:
        """What the model does now."""
        return self._fleet.state(self._fleet.get(name))

    def why_no_checkpoint(self, name: str) -> str:
        """Why the model would start cold; empty where its checkpoint is good."""
        return self._fleet.why_no_checkpoint(self._fleet.get(name))

    def costs(self, name: str) -> dict[str, float]:
        """What moving the model takes as a rule, in seconds, as far as it was learnt."""
        learnt = {cost.value: self._book.costs.known(name, cost) for cost in Cost}
        return {cost: seconds for cost, seconds in learnt.items() if seconds is not None}

    def queue_length(self) -> int:
        """Requests that wait for a model."""
        return self._admission.length

    # What the proxy does

    def deadline(self, name: str) -> float:
        """By when the answer to a request that arrives now must begin, on the loop's clock."""
        return now() + self._fleet.resolve(name).config.request_timeout

    def request(
        self, name: str, deadline: float | None = None, priority: int = 0
    ) -> contextlib.AbstractAsyncContextManager[Backend]:
        """Have the model serve for as long as the context lasts; waits for it if need be.

        TimedOut at `deadline`, by default the one of `deadline()`. While it waits, `priority` is
        added to the model's.
        """
        model = self._fleet.resolve(name)
        if deadline is None:
            deadline = self.deadline(name)
        return _Place(self._admission, model, deadline, priority)

    async def lost(self, name: str, backend: Backend) -> None:
        """The server behind `backend` could not be reached; the next request looks again."""
        model = self._fleet.models.get(name)
        if model is not None and model.backend is backend:
            log.warning("%s: its server cannot be reached", name,
                        extra=about(Event.SERVER_UNREACHABLE, model=name))  # fmt: skip
            model.connect_at = now() + pauses.CONNECT_AGAIN
            # It may listen no more and still be ending the streams that it has.
            await self._fleet.retire_backend(model)
            self._fleet.changed(model)

    # What operators do: operators.py says more of each

    def switch(self, name: str) -> Job:
        """Make the model serve."""
        return self._operators.switch(name)

    def preload(self, name: str) -> Job:
        """Make the model serve once nobody else wants its place."""
        return self._operators.preload(name)

    def pin(self, name: str, pinned: bool) -> None:
        """Keep the model from leaving for another one, or let it; until llmuxd is restarted."""
        model = self._fleet.resolve(name)
        model.pinned = pinned
        self._fleet.changed(model)

    def checkpoint(self, name: str) -> Job:
        """Drain the model and write it to disk."""
        return self._operators.checkpoint(name)

    def park(self, name: str) -> Job:
        """Drain the model and freeze it."""
        return self._operators.park(name)

    def stop(self, name: str) -> Job:
        """Drain the model and end it."""
        return self._operators.stop(name)

    def warmup(self, name: str) -> Job:
        """Have a checkpoint of the model on disk."""
        return self._operators.warmup(name)

    def tune(self, name: str) -> Job:
        """The same, after what it best lets go of before it leaves was measured."""
        return self._operators.tune(name)

    def letting_go(self, name: str) -> dict[Tier, LettingGo]:
        """What the model lets go of before it leaves to each tier, and who says so."""
        model = self._fleet.get(name)
        tuned = None if self._fleet.why_no_tuning(model) else model.tuning
        return {tier: usual(model.config, tier, tuned) for tier in Tier}

    def figures(self, name: str) -> tuple[Figures, ...]:
        """What was measured of that: by a tuning that has not got to its end, else as kept."""
        model = self._fleet.get(name)
        if model.measured is not None:
            return model.measured
        return model.tuning.figures if model.tuning else ()

    def why_no_tuning(self, name: str) -> str:
        """Why nothing that was measured says so; empty where something does."""
        return self._fleet.why_no_tuning(self._fleet.get(name))

    def reload(self, config: Config) -> None:
        """Take a new configuration; a model that is gone from it drains and leaves."""
        fleet = self._fleet
        fleet.config = config
        for name, model_config in config.models.items():
            if name in fleet.models:
                self._reconfigure(fleet.models[name], model_config)
            else:
                fleet.models[name] = Model(model_config)
                fleet.tell(name)
                self._tasks.spawn(fleet.look(fleet.models[name]))
        for name in [name for name in fleet.models if name not in config.models]:
            model = fleet.models[name]
            model.removed = True
            self._admission.refuse_all(model, was_removed(model))
            self._tasks.spawn(self._drop(model))
        # In the file's order again; those that leave come last.
        for name in [*config.models, *(name for name in fleet.models if name not in config.models)]:
            fleet.models[name] = fleet.models.pop(name)
        fleet.woken.set()

    def _reconfigure(self, model: Model, config: ModelConfig) -> None:
        if config.definition != model.config.definition:
            self._book.forget(model.name)
        if model.held_gpus is None and not self._fleet.units.status(model.name).down:
            # Begun by hand, by what was said before.
            model.held_gpus = model.config.gpus
        model.config = config
        model.removed = False
        # The file was mended, perhaps.
        model.failures, model.may_start_at = 0, 0.0
        self._fleet.changed(model)

    # The daemon's

    def measure(self, gpus: Mapping[int, Gpu]) -> None:
        """The memory of the GPUs, by number; models that say `vram` are let in by it."""
        self._decider.measure(gpus)

    async def adopt(self) -> None:
        """Take over what runs already. Call once the units are attached."""
        fleet = self._fleet
        await self._book.load()
        await self._succession.load()
        for name in fleet.units.running():
            if name not in fleet.models:
                # Removed from the file while nobody looked: it holds its GPU until it leaves.
                fleet.models[name] = Model(ModelConfig(name, image=""), removed=True)
                self._tasks.spawn(self._drop(fleet.models[name]))
        await asyncio.gather(*(fleet.look(model) for model in list(fleet.models.values())))
        await asyncio.to_thread(_forget_orders, self._at_rest())
        fleet.woken.set()
        self._tasks.spawn(self._preloading.run())

    async def run(self) -> None:
        """Decide and act whenever something changed, until closed."""
        woken = self._fleet.woken
        self._tasks.spawn(self._book.keep())
        while not self._admission.stopping:
            timeout = await self._decider.step()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), timeout)
            woken.clear()

    async def close(self) -> None:
        """Stop deciding; units stay as they are."""
        self._admission.stopping = True
        self._fleet.woken.set()
        for model in self._fleet.models.values():
            self._admission.refuse_all(model, Stopping("llmuxd is stopping"))
        await self.jobs.close()
        await self._tasks.close()
        await self._succession.written()
        await self._book.save()
        for model in self._fleet.models.values():
            await self._fleet.close_backend(model)

    def _at_rest(self) -> list[str]:
        """The models that nobody is moving."""
        return [
            model.name
            for model in self._fleet.models.values()
            if model.transition is None
            and self._fleet.units.status(model.name).active in ("active", "inactive", "failed")
        ]

    async def _drop(self, model: Model) -> None:
        while self._is_to_go(model):
            try:
                await self._transitions.command(model, self._leaving.end(model, Leave.STOP))
                break
            except LlmuxError as error:
                log.error("%s was removed and does not leave: %s", model.name, error,
                          extra=about(model=model.name, phase="leaving"))  # fmt: skip
                await asyncio.sleep(pauses.LEAVE_AGAIN)
        if self._is_to_go(model):
            del self._fleet.models[model.name]
            self._book.forget(model.name)
            self._fleet.tell(model.name)

    def _is_to_go(self, model: Model) -> bool:
        """Whether it has to leave still: it may be back in the file, or gone and another's name."""
        return model.removed and self._fleet.models.get(model.name) is model


def _forget_orders(names: list[str]) -> None:
    """Orders of a llmuxd that died before systemd had heard of them are nobody's any more, nor is
    what it held a unit back with."""
    for name in names:
        forget_leave(name)
        take_park_order(name)
        hold.forget(name)


class _Place:
    """A request's, from its wait to its end. No generator: each request takes one."""

    __slots__ = ("_admission", "_backend", "_deadline", "_model", "_priority")

    def __init__(self, admission: Admission, model: Model, deadline: float, priority: int):
        self._admission = admission
        self._model = model
        self._deadline = deadline
        self._priority = priority

    async def __aenter__(self) -> Backend:
        self._backend = await self._admission.enter(
            self._model, Wish.REQUEST, self._deadline, self._priority
        )
        return await self._backend.__aenter__()

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self._backend.__aexit__(*exc)
        finally:
            self._admission.leave(self._model)
