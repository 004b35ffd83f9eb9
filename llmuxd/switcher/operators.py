# SPDX-License-Identifier: MIT
"""What people ask for: jobs that go beside the policy, and by the same moves."""

import asyncio
from collections.abc import Awaitable, Callable

from ..config import Tier
from ..costs import Cost
from ..errors import LlmuxError, ModelFailed, NoRoom, NotRunning, NotSupported
from ..jobs import Job, Jobs, Kind
from ..model.activation import Leave
from ..policy import Stage
from ..state import State, UnitStatus
from .admission import Admission
from .costbook import CostBook
from .fleet import Fleet
from .following import Following
from .leaving import Leaving
from .models import Model, Wish
from .tasks import Tasks
from .transitions import Transitions
from .tuning import Tuner, refuse_if_vain


class Operators:
    """Each method refuses at once what cannot be, and returns the job otherwise."""

    def __init__(
        self,
        fleet: Fleet,
        tasks: Tasks,
        admission: Admission,
        transitions: Transitions,
        leaving: Leaving,
        following: Following,
        book: CostBook,
        could_meet: Callable[[Model], bool],
        why_no_dump: Callable[[Model], Awaitable[str]],
    ):
        self.jobs = Jobs()
        self._fleet = fleet
        self._tasks = tasks
        self._admission = admission
        self._transitions = transitions
        self._leaving = leaving
        self._following = following
        self._book = book
        self._could_meet = could_meet
        self._why_no_dump = why_no_dump
        fleet.listeners.append(self._tell_phase)

    def switch(self, name: str) -> Job:
        """Make the model serve."""
        model = self._fleet.resolve(name)
        self._forgive(model)

        async def work(job: Job) -> None:
            await self._bring_in(model, Wish.OPERATOR)

        return self.jobs.add(Kind.SWITCH, model.name, work, self._arriving(model))

    def preload(self, name: str) -> Job:
        """Make the model serve once nobody else wants its place; idle ones leave for it."""
        model = self._fleet.resolve(name)

        async def work(job: Job) -> None:
            await self._bring_in(model, Wish.PRELOAD)

        return self.jobs.add(Kind.PRELOAD, model.name, work, self._arriving(model))

    def checkpoint(self, name: str) -> Job:
        """Drain the model and write it to disk."""
        model = self._fleet.resolve(name)
        if not model.config.checkpoint:
            raise NotSupported(
                f"{model.name!r} is never checkpointed", "its configuration says checkpoint: false"
            )
        if self._fleet.state(model) in (State.COLD, State.FAILED):
            raise NotRunning(
                f"{model.name!r} does not run", f"'llmuxctl warmup {model.name}' starts it first"
            )

        async def work(job: Job) -> None:
            await self._checkpoint(model)

        return self.jobs.add(Kind.CHECKPOINT, model.name, work, self._going(model))

    def park(self, name: str) -> Job:
        """Drain the model and freeze it; it comes back in milliseconds."""
        model = self._fleet.resolve(name)
        if self._fleet.state(model) in (State.COLD, State.CHECKPOINTED, State.FAILED):
            raise NotRunning(f"{model.name!r} does not run", "only a running model can be parked")

        async def work(job: Job) -> None:
            await self._transitions.command(model, self._leaving.park(model))

        return self.jobs.add(Kind.PARK, model.name, work, self._going(model, Cost.PARK))

    def stop(self, name: str) -> Job:
        """Drain the model and end it without a checkpoint; does nothing where it does not run."""
        model = self._fleet.resolve(name)

        async def work(job: Job) -> None:
            await self._end_tuning(model)
            self._following.disown(model)
            await self._end(model, Leave.STOP)

        return self.jobs.add(Kind.STOP, model.name, work, self._going(model))

    def warmup(self, name: str) -> Job:
        """Have a checkpoint of the model on disk: start it, wait for its health, dump it."""
        model = self._fleet.resolve(name)
        self._forgive(model)

        async def work(job: Job) -> None:
            await self._warm_up(model)

        return self.jobs.add(Kind.WARMUP, model.name, work, self._warming(model))

    def tune(self, name: str) -> Job:
        """Measure what the model best lets go of before it leaves, then warm it up by that."""
        model = self._fleet.resolve(name)
        refuse_if_vain(model.config)
        if model.tried or self._tuning(model) is not None:
            raise LlmuxError(f"{model.name!r} is being tuned already", "see 'llmuxctl jobs'")
        self._forgive(model)

        async def work(job: Job) -> None:
            tuner = Tuner(
                self._fleet, self._admission, self._transitions, self._leaving, self._book, model,
                lambda step: self._take_step(job, step),
            )  # fmt: skip
            await self._see_through(model, tuner.run, tuner.give_up)
            self._take_step(job, tuner.nothing or "warming up")
            await self._warm_up(model)
            tuner.verify()

        return self.jobs.add(Kind.TUNE, model.name, work)

    def _tuning(self, model: Model) -> Job | None:
        """The job that tunes it."""
        jobs = (job for job in self.jobs.all() if job.kind is Kind.TUNE)
        return next((job for job in jobs if job.model == model.name), None)

    async def _end_tuning(self, model: Model) -> None:
        """It would have the model come back."""
        job = self._tuning(model)
        if job is not None:
            error = ModelFailed(
                f"{model.name!r} was stopped while it was tuned",
                f"'llmuxctl warmup --tune {model.name}' begins anew",
            )
            await self.jobs.overrule(job, error)

    def _take_step(self, job: Job, step: str) -> None:
        job.step = step
        self.jobs.set_phase(job, step)

    async def _warm_up(self, model: Model) -> None:
        if self._fleet.state(model) is State.CHECKPOINTED and not _is_trial(model):
            return
        if self._fleet.stage(model) is Stage.IN:
            await self._write(model)
        else:
            await self._bring_in(model, Wish.OPERATOR, write=True)

    async def _bring_in(self, model: Model, wish: Wish, write: bool = False) -> None:
        """Have it serve, then perhaps write it to disk.

        Cancelled once it comes, or another one leaves for it, that goes on to its end.
        """
        if self._fleet.stage(model) is Stage.IN and not write:
            # Not a turn later: it may have been told to leave by then, and would have to come back.
            return
        serves = asyncio.Event()

        async def steps() -> None:
            await self._admission.enter(model, wish)
            serves.set()
            if write:
                await self._write(model)

        await self._see_through(model, steps, serves.is_set)

    async def _see_through(
        self, model: Model, steps: Callable[[], Awaitable[None]], goes_on: Callable[[], bool]
    ) -> None:
        """Take steps in which the model comes, perhaps.

        Cancelled they go on while it comes, or another one leaves for it, or where `goes_on`.
        """

        async def work() -> LlmuxError | None:
            try:
                await steps()
            except LlmuxError as error:
                return error
            except asyncio.CancelledError:
                self._following.give_back(model)
                raise
            return None

        task = asyncio.create_task(work())
        self._tasks.own(task)
        try:
            error = await asyncio.shield(task)
        except asyncio.CancelledError:
            if not (goes_on() or self._following.adopt(model, task)):
                task.cancel()
            raise
        if error is not None:
            raise error

    async def _write(self, model: Model) -> None:
        if model.config.checkpoint:
            await self._checkpoint(model)

    async def _checkpoint(self, model: Model) -> None:
        """NoRoom, and it stays parked, where its dump would take the GPU from others."""
        why = await self._why_no_dump(model)
        if why:
            raise NoRoom(
                f"{model.name!r} is parked, and has to be on its GPU to be checkpointed: {why}",
                "have that leave first; 'llmuxctl switch' brings this one back",
            )
        await self._end(model, Leave.CHECKPOINT)
        _require_checkpoint(model)

    def _forgive(self, model: Model) -> None:
        """What failed before does not count against what an operator asks for."""
        model.may_start_at, model.failures = 0.0, 0
        self._fleet.tell(model.name)

    def _warming(self, model: Model) -> float:
        """Seconds until it is on disk; 0: not known, or it is there already."""
        state = self._fleet.state(model)
        if state is State.CHECKPOINTED:
            return 0.0
        arriving, going = self._arriving(model), self._going(model)
        if not model.config.checkpoint:
            return arriving
        known = going and (arriving or state is State.SERVING)
        return arriving + going if known else 0.0

    def _arriving(self, model: Model) -> float:
        """Seconds until it serves, those who leave before it included; 0: not known, or it does."""
        if self._fleet.state(model) is State.SERVING:
            return 0.0
        coming = self._coming(model)
        if not coming or self._could_meet(model):
            return coming
        return coming + self._leaving_for(model)

    def _coming(self, model: Model) -> float:
        """Seconds that it took as a rule to bring it in from where it is; 0: not known."""
        ways = {State.PARKED: Cost.RESUME, State.CHECKPOINTED: Cost.RESTORE}
        return self._learnt(model, ways.get(self._fleet.state(model), Cost.COLD))

    def _leaving_for(self, model: Model) -> float:
        """Seconds that the slowest of those takes who must leave for it, as far as is known.

        Where two say what `vram` they need, the policy judges then whether both fit.
        """
        return max(
            (
                self._going(other, Cost.PARK if other.config.tier is Tier.PARK else Cost.OUT)
                for other in self._fleet.models.values()
                if other is not model
                and not other.pin
                and self._fleet.stage(other) is Stage.IN
                and set(other.held) & set(self._fleet.place(model))
                and None in (other.config.vram, model.config.vram)
            ),
            default=0.0,
        )

    def _going(self, model: Model, way: Cost = Cost.OUT) -> float:
        """Seconds that it took to get it out, the requests that it answers now included."""
        return self._learnt(model, way) + model.in_flight * self._learnt(model, Cost.DRAIN)

    def _learnt(self, model: Model, cost: Cost) -> float:
        return self._book.costs.known(model.name, cost) or 0.0

    async def _end(self, model: Model, leave: Leave) -> None:
        await self._transitions.command(model, self._leaving.end(model, leave))

    def _tell_phase(self, name: str) -> None:
        """A job tells what the unit of its model tells, once it is the job's doing."""
        jobs = [job for job in self.jobs.all() if job.model == name and job.result is None]
        model = self._fleet.models.get(name)
        if jobs and model is not None:
            text = _phase(model.moving, self._fleet.units.status(name))
            for job in jobs if text else ():
                self.jobs.set_phase(job, f"{job.step}: {text}" if job.step else text)


def _phase(moving: Stage | None, unit: UnitStatus) -> str:
    """What a model on its way is at; empty where its unit tells what was before."""
    if moving is Stage.DRAINING:
        return "draining"
    stale = moving is Stage.LEAVING and unit.text.startswith("serving")
    return "" if moving is None or unit.down or stale else unit.text


def _is_trial(model: Model) -> bool:
    return model.checkpoint is not None and model.checkpoint.trial


def _require_checkpoint(model: Model) -> None:
    record = model.checkpoint
    if record is None or record.invalid:
        why = record.invalid if record else "no checkpoint was written"
        raise ModelFailed(
            f"{model.name!r} was stopped without a checkpoint: {why}",
            f"'llmuxctl logs {model.name}' shows more",
        )
