# SPDX-License-Identifier: MIT
"""Carries policy's decisions out: queue, drain, activate, checkpoint, fail.

Each model has at most one transition at a time, a task. What a model is doing is never stored
beside what systemd says: only the transition that runs here is remembered.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from . import memory, policy
from .backend import Backend
from .config import Config, ModelConfig, Tier
from .errors import (
    Internal,
    LlmuxError,
    ModelFailed,
    NoSuchModel,
    NotRunning,
    NotSupported,
    Stopping,
    UnitRefused,
)
from .jobs import Job, Jobs, Kind
from .model.activation import (
    Activation,
    Leave,
    forget_leave,
    off_gpu,
    order_leave,
    order_park,
    take_park_order,
)
from .model.checkpoint import Checkpoint
from .policy import Stage
from .state import State, UnitStatus, derive
from .units import Units

log = logging.getLogger(__name__)

# A start that failed once is tried again after the first of these; then the model is left alone
# for the next, and its requests are refused at once meanwhile.
COOL_DOWN = (1.0, 10.0, 30.0, 120.0, 300.0)
# A unit that would not stop is asked again no sooner.
LEAVE_AGAIN = 10.0
# A server that cannot be reached, in a unit that is up: systemd may be about to tell that it died.
CONNECT_AGAIN = 1.0


@dataclass(eq=False)
class Waiter:
    """Who waits for a model: a request, or an operator's job. `arrived` is monotonic time."""

    arrived: float
    request: bool
    admitted: asyncio.Future[Backend]


@dataclass(eq=False)
class Model:
    """What the switcher knows of a model beside its unit."""

    config: ModelConfig
    waiters: deque[Waiter] = field(default_factory=deque)
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    transition: asyncio.Task[LlmuxError | None] | None = None
    moving: Stage | None = None
    commanded: bool = False  # an operator's leaving: not called back by the policy
    backend: Backend | None = None
    checkpoint: Checkpoint | None = None
    activation: Activation | None = None
    failures: int = 0
    may_start_at: float = 0.0
    may_leave_at: float = 0.0
    connect_at: float = 0.0
    held_gpus: tuple[int, ...] | None = None
    last_error: str = ""
    last_used: float = 0.0
    removed: bool = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self.config.name


class Switcher:
    """All models. Each of `listeners` is told the name of a model when something of it changed."""

    def __init__(self, config: Config, units: Units):
        self.config = config
        self.jobs = Jobs()
        self.listeners: list[Callable[[str], None]] = []
        self._units = units
        self._units.changed = self._unit_changed
        self._models = {name: Model(model) for name, model in config.models.items()}
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    # What others read

    def names(self) -> list[str]:
        """The names of all models, in the order of the configuration."""
        return list(self._models)

    def model(self, name: str) -> Model:
        """The model of this name (no alias)."""
        try:
            return self._models[name]
        except KeyError:
            raise NoSuchModel(f"there is no model {name!r}") from None

    def state(self, name: str) -> State:
        """What the model does now."""
        model = self.model(name)
        return derive(
            self._units.status(name),
            has_checkpoint=not self.why_no_checkpoint(name),
            leaving=model.moving in (Stage.DRAINING, Stage.LEAVING),
        )

    def why_no_checkpoint(self, name: str) -> str:
        """Why the model would start cold; empty where its checkpoint is good, as far as is known.

        What can only be seen where it is restored (kernel, CRIU, image) is looked at there.
        """
        model = self.model(name)
        if model.checkpoint is None:
            return "none was taken"
        if model.checkpoint.identity.definition != model.config.definition:
            return model.checkpoint.invalid or "the model's definition in llmux.yaml changed"
        return model.checkpoint.invalid

    def queue_length(self) -> int:
        """Requests that wait for a model."""
        return sum(1 for model in self._models.values() for w in model.waiters if w.request)

    # What the proxy does

    @contextlib.asynccontextmanager
    async def request(self, name: str) -> AsyncIterator[Backend]:
        """Have the model serve for as long as the context lasts; waits for it if need be."""
        model = self._models[self.config.resolve(name)]
        backend = await self._admission(model, request=True)
        try:
            async with backend:
                yield backend
        finally:
            self._leave_flight(model)

    async def lost(self, name: str, backend: Backend) -> None:
        """The server behind `backend` could not be reached; the next request looks again."""
        model = self._models.get(name)
        if model is not None and model.backend is backend:
            log.warning("%s: its server cannot be reached", name)
            model.connect_at = time.monotonic() + CONNECT_AGAIN
            # It may listen no more and still be ending the streams that it has.
            await self._retire_backend(model)
            self._changed(model)

    # What operators do

    def switch(self, name: str) -> Job:
        """Make the model serve."""
        model = self._models[self.config.resolve(name)]
        model.may_start_at, model.failures = 0.0, 0

        async def work(job: Job) -> None:
            await self._admission(model, request=False)

        return self.jobs.add(Kind.SWITCH, model.name, work)

    def checkpoint(self, name: str) -> Job:
        """Drain the model and write it to disk."""
        model = self._models[self.config.resolve(name)]
        if not model.config.checkpoint:
            raise NotSupported(
                f"{model.name!r} is never checkpointed", "its configuration says checkpoint: false"
            )
        if self.state(model.name) is State.COLD:
            raise NotRunning(
                f"{model.name!r} does not run", f"'llmuxctl warmup {model.name}' starts it first"
            )

        async def work(job: Job) -> None:
            await self._command(model, self._out(model, Leave.CHECKPOINT))
            self._require_checkpoint(model)

        return self.jobs.add(Kind.CHECKPOINT, model.name, work)

    def park(self, name: str) -> Job:
        """Drain the model and freeze it; it comes back in milliseconds."""
        model = self._models[self.config.resolve(name)]
        if self.state(model.name) in (State.COLD, State.CHECKPOINTED, State.FAILED):
            raise NotRunning(f"{model.name!r} does not run", "only a running model can be parked")

        async def work(job: Job) -> None:
            await self._command(model, self._freeze(model))

        return self.jobs.add(Kind.PARK, model.name, work)

    def stop(self, name: str) -> Job:
        """Drain the model and end it without a checkpoint; does nothing where it does not run."""
        model = self._models[self.config.resolve(name)]

        async def work(job: Job) -> None:
            await self._command(model, self._out(model, Leave.STOP))

        return self.jobs.add(Kind.STOP, model.name, work)

    def warmup(self, name: str) -> Job:
        """Have a checkpoint of the model on disk: start it, wait for its health, dump it."""
        model = self._models[self.config.resolve(name)]
        model.may_start_at, model.failures = 0.0, 0

        async def work(job: Job) -> None:
            if self.state(model.name) is State.CHECKPOINTED:
                return
            await self._admission(model, request=False)
            if model.config.checkpoint:
                await self._command(model, self._out(model, Leave.CHECKPOINT))
                self._require_checkpoint(model)

        return self.jobs.add(Kind.WARMUP, model.name, work)

    def reload(self, config: Config) -> None:
        """Take a new configuration; a model that is gone from it drains and leaves."""
        self.config = config
        for name, model_config in config.models.items():
            if name in self._models:
                self._models[name].config = model_config
                self._models[name].removed = False
            else:
                self._models[name] = Model(model_config)
                self._tell(name)
                self._spawn(self._look(self._models[name]))
        for name in [name for name in self._models if name not in config.models]:
            model = self._models[name]
            self._refuse_all(model, NoSuchModel(f"the model {name!r} was removed"))
            model.removed = True
            self._spawn(self._drop(model))
        self._kick()

    # The loop

    async def adopt(self) -> None:
        """Take over what runs already. Call once the units are attached."""
        for name in self._units.running():
            if name not in self._models:
                # Removed from the file while nobody looked: it holds its GPU until it leaves.
                self._models[name] = Model(ModelConfig(name, image=""), removed=True)
                self._spawn(self._drop(self._models[name]))
        await asyncio.gather(*(self._look(model) for model in list(self._models.values())))
        self._kick()

    async def run(self) -> None:
        """Decide and act whenever something changed, until closed."""
        while not self._stopping:
            timeout = self._step()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout)
            self._wake.clear()

    async def close(self) -> None:
        """Stop deciding; units stay as they are."""
        self._stopping = True
        self._kick()
        for model in self._models.values():
            self._refuse_all(model, Stopping("llmuxd is stopping"))
        await self.jobs.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for model in self._models.values():
            await self._close_backend(model)

    def _step(self) -> float | None:
        """One round of policy; returns the seconds until the next is due anyhow."""
        for model in self._models.values():
            self._serve_waiters(model)
            if self._needs_backend(model):
                self._begin(model, Stage.COMING, self._connect(model))
        now = time.monotonic()
        decision = policy.decide([self._view(model) for model in self._models.values()], now)
        for name in decision.call_back:
            self._call_back(self._models[name])
        for name in decision.drain:
            model = self._models[name]
            self._begin(model, Stage.DRAINING, self._make_room(model))
        for name in decision.activate:
            model = self._models[name]
            self._begin(model, Stage.COMING, self._activate(model))
        self._spill()
        due = [model.connect_at for model in self._models.values() if model.connect_at > now]
        if decision.again_at is not None:
            due.append(decision.again_at)
        return max(min(due) - now, 0.0) if due else None

    def _view(self, model: Model) -> policy.ModelView:
        stage = self._stage(model)
        return policy.ModelView(
            name=model.name,
            # What it holds was decided when it came up; a reload changes the next time only.
            gpus=frozenset(model.config.gpus if stage is Stage.OUT else _held(model)),
            stage=stage,
            waiting_since=model.waiters[0].arrived if model.waiters else None,
            may_start_at=model.may_start_at,
            may_leave_at=model.may_leave_at,
        )

    def _stage(self, model: Model) -> Stage:
        if model.moving is not None:
            if model.moving is Stage.DRAINING and model.commanded:
                return Stage.LEAVING
            return model.moving
        unit = self._units.status(model.name)
        if unit.down or (unit.up and unit.frozen):
            return Stage.OUT
        if unit.up:
            return Stage.IN if model.backend is not None else Stage.COMING
        return Stage.LEAVING if unit.active == "deactivating" else Stage.COMING

    # Requests

    async def _admission(self, model: Model, *, request: bool) -> Backend:
        if self._stopping:
            raise Stopping("llmuxd is stopping")
        if self._stage(model) is Stage.IN and model.backend is not None:
            if request:
                self._join_flight(model)
            return model.backend
        self._refuse_if_failing(model)
        future: asyncio.Future[Backend] = asyncio.get_running_loop().create_future()
        waiter = Waiter(time.monotonic(), request, future)
        model.waiters.append(waiter)
        self._changed(model)
        try:
            return await future
        except asyncio.CancelledError:
            if waiter in model.waiters:
                model.waiters.remove(waiter)
            elif request and future.done() and not future.cancelled() and not future.exception():
                # It was let in in the very moment in which its client left.
                self._leave_flight(model)
            self._changed(model)
            raise

    def _serve_waiters(self, model: Model) -> None:
        if self._stage(model) is not Stage.IN or model.backend is None:
            return
        while model.waiters:
            waiter = model.waiters.popleft()
            if waiter.admitted.done():
                continue
            if waiter.request:
                self._join_flight(model)
            waiter.admitted.set_result(model.backend)

    def _join_flight(self, model: Model) -> None:
        model.in_flight += 1
        model.idle.clear()
        model.last_used = time.time()
        self._tell(model.name)

    def _leave_flight(self, model: Model) -> None:
        model.in_flight -= 1
        model.last_used = time.time()
        if model.in_flight == 0:
            model.idle.set()
        self._tell(model.name)

    def _refuse_if_failing(self, model: Model) -> None:
        wait = model.may_start_at - time.monotonic()
        if model.failures > 1 and wait > 0:
            raise ModelFailed(
                f"{model.name!r} keeps failing: {model.last_error}",
                f"next try in {wait:.0f} s; 'llmuxctl logs {model.name}' shows why",
                retry_after=wait,
            )

    def _refuse_all(self, model: Model, error: LlmuxError) -> None:
        while model.waiters:
            waiter = model.waiters.popleft()
            if not waiter.admitted.done():
                waiter.admitted.set_exception(error)

    # Transitions

    def _begin(self, model: Model, moving: Stage, work: Coroutine[Any, Any, None]) -> None:
        assert model.transition is None, f"{model.name} has a transition already"
        model.moving = moving
        model.transition = asyncio.create_task(self._transition(model, work))
        self._own(model.transition)
        self._changed(model)

    async def _transition(self, model: Model, work: Coroutine[Any, Any, None]) -> LlmuxError | None:
        """Run `work`; its error is returned, for whoever commanded it."""
        try:
            await work
            return None
        except LlmuxError as error:
            model.last_error = str(error)
            log.error("%s: %s", model.name, error)
            return error
        except Exception:
            log.exception("%s: a bug", model.name)
            return Internal("internal error")
        finally:
            model.transition = model.moving = None
            model.commanded = False
            self._changed(model)

    async def _activate(self, model: Model) -> None:
        status = self._units.status(model.name)
        model.held_gpus = model.config.gpus
        try:
            if status.up and status.frozen:
                await self._units.thaw(model.name)
                await self._wake_up(model)
            else:
                await self._units.start(model.name)
            await self._look(model)
            if model.backend is None:
                raise self._start_error(model)
        except LlmuxError as error:
            self._start_failed(model, error)
            raise
        except Exception:
            # Without the pause its waiters would have it started again and again.
            self._start_failed(model, Internal("internal error"))
            raise
        model.failures, model.may_start_at, model.last_error = 0, 0.0, ""

    def _start_error(self, model: Model) -> ModelFailed:
        status = self._units.status(model.name)
        why = status.text.removeprefix("failed: ")
        return ModelFailed(
            f"{model.name!r} could not be started: {why or status.result}",
            f"'llmuxctl logs {model.name}' shows more",
        )

    def _start_failed(self, model: Model, error: LlmuxError) -> None:
        pause = COOL_DOWN[min(model.failures, len(COOL_DOWN) - 1)]
        model.failures += 1
        model.may_start_at = time.monotonic() + pause
        model.last_error = error.message
        if model.failures > 1:
            error.retry_after = pause
            self._refuse_all(model, error)

    async def _out(self, model: Model, leave: Leave) -> None:
        """Drain, then stop the unit. Cancelled while it drains, nothing has happened."""
        await self._drain(model)
        model.moving = Stage.LEAVING
        self._changed(model)
        await self._close_backend(model)
        if self._units.status(model.name).frozen:
            await self._units.thaw(model.name)
        try:
            await asyncio.to_thread(order_leave, model.name, leave)
            await self._units.stop(model.name)
        except (LlmuxError, OSError) as error:
            model.may_leave_at = time.monotonic() + LEAVE_AGAIN
            await asyncio.to_thread(forget_leave, model.name)
            raise UnitRefused(f"{model.name!r} could not be stopped: {error}") from None
        await self._look(model)
        if not self._units.status(model.name).down:
            model.may_leave_at = time.monotonic() + LEAVE_AGAIN
            raise UnitRefused(f"{model.name!r} would not stop", "see 'systemctl status'")

    async def _freeze(self, model: Model) -> None:
        await self._drain(model)
        model.moving = Stage.LEAVING
        await self._close_backend(model)
        if model.activation is not None and model.activation.devices:
            await self._off_gpu(model)
        await self._units.freeze(model.name)

    async def _off_gpu(self, model: Model) -> None:
        """A frozen unit keeps its GPU memory: the unit's own helper moves that out first."""
        await asyncio.to_thread(order_park, model.name)
        try:
            result = await self._units.reload(model.name)
        finally:
            # One that was not carried out must not meet a later reload.
            await asyncio.to_thread(take_park_order, model.name)
        if result != "done" or not await asyncio.to_thread(off_gpu, model.name):
            raise UnitRefused(
                f"{model.name!r} could not be taken off its GPU",
                f"'llmuxctl logs {model.name}' shows why",
            )

    async def _wake_up(self, model: Model) -> None:
        """Bring one back that is off its GPU; what does not come back is ended."""
        if not await asyncio.to_thread(off_gpu, model.name):
            return
        await self._units.reload(model.name)
        if await asyncio.to_thread(off_gpu, model.name):
            await asyncio.to_thread(order_leave, model.name, Leave.STOP)
            await self._units.stop(model.name)
            raise ModelFailed(
                f"{model.name!r} did not come back to its GPU and was stopped",
                f"'llmuxctl logs {model.name}' shows why",
            )

    async def _make_room(self, model: Model) -> None:
        """Leave the GPU for another model, by the tier that was configured if it can be."""
        if model.config.tier is Tier.PARK and not memory.short():
            try:
                await self._freeze(model)
                return
            except LlmuxError as error:
                log.warning("%s cannot be parked and is checkpointed: %s", model.name, error)
        await self._out(model, Leave.CHECKPOINT)

    def _spill(self) -> None:
        """Where memory is short, the parked model that was used least lately goes to disk."""
        parked = [
            model
            for model in self._models.values()
            if self.state(model.name) is State.PARKED
            and model.transition is None
            and model.may_leave_at <= time.monotonic()
        ]
        # One at a time: what the one before gave back is not known until it is gone.
        leaving = any(model.moving is Stage.LEAVING for model in self._models.values())
        if parked and not leaving and memory.short():
            model = min(parked, key=lambda model: model.last_used)
            log.info("%s: memory is short, from parked to disk", model.name)
            self._begin(model, Stage.LEAVING, self._out(model, Leave.CHECKPOINT))

    async def _drain(self, model: Model) -> None:
        if model.in_flight:
            log.info("%s: draining %d requests", model.name, model.in_flight)
            model.idle.clear()
            await model.idle.wait()

    async def _connect(self, model: Model) -> None:
        """A unit that came up without us: by hand, or before llmuxd was started."""
        if (await self._units.refresh(model.name)).down:
            return
        # Thawed by hand, or left so by a llmuxd that died in the middle.
        await self._wake_up(model)
        await self._look(model)
        if model.backend is None:
            model.connect_at = time.monotonic() + LEAVE_AGAIN
            raise UnitRefused(f"the unit of {model.name!r} is active but does not say where it is")
        log.info("%s: adopted on port %d", model.name, model.backend.port)

    def _call_back(self, model: Model) -> None:
        if model.transition is not None and model.moving is Stage.DRAINING:
            log.info("%s: nobody waits for its GPU any more, it goes on", model.name)
            model.transition.cancel()

    async def _command(self, model: Model, work: Coroutine[Any, Any, None]) -> None:
        """Run an operator's leaving as the model's transition, after the one that runs."""
        try:
            while model.transition is not None:
                await asyncio.wait([model.transition])
        except asyncio.CancelledError:
            work.close()
            raise
        if self._units.status(model.name).down:
            work.close()
            return
        model.commanded = True
        self._begin(model, Stage.DRAINING, work)
        transition = model.transition
        assert transition is not None
        try:
            error = await asyncio.shield(transition)
        except asyncio.CancelledError:
            if model.moving is Stage.DRAINING:
                transition.cancel()
            raise
        if error is not None:
            raise error

    def _require_checkpoint(self, model: Model) -> None:
        record = model.checkpoint
        if record is None or record.invalid:
            why = record.invalid if record else "no checkpoint was written"
            raise ModelFailed(
                f"{model.name!r} was stopped without a checkpoint: {why}",
                f"'llmuxctl logs {model.name}' shows more",
            )

    async def _drop(self, model: Model) -> None:
        while model.removed:
            try:
                await self._command(model, self._out(model, Leave.STOP))
                break
            except LlmuxError as error:
                log.error("%s was removed and does not leave: %s", model.name, error)
                await asyncio.sleep(LEAVE_AGAIN)
        if model.removed:
            self._models.pop(model.name, None)
            self._tell(model.name)

    # What is seen

    def _needs_backend(self, model: Model) -> bool:
        unit = self._units.status(model.name)
        return (
            unit.up
            and not unit.frozen
            and model.backend is None
            and model.transition is None
            and time.monotonic() >= model.connect_at
        )

    async def _look(self, model: Model) -> None:
        """Read what the unit's helper left on disk: where the server is, and the checkpoint."""
        activation = await asyncio.to_thread(Activation.load, model.name)
        checkpoint = await asyncio.to_thread(_load_checkpoint, model.name)
        model.checkpoint = checkpoint
        unit = self._units.status(model.name)
        if unit.up and activation is not None:
            if model.activation != activation or model.backend is None:
                await self._close_backend(model)
                model.backend = Backend(activation.port)
            model.activation = activation
            model.held_gpus = activation.gpus
        elif unit.down:
            await self._close_backend(model)
            model.activation = model.held_gpus = None
        self._changed(model)

    def _unit_changed(self, name: str, status: UnitStatus) -> None:
        model = self._models.get(name)
        if model is None:
            return
        if status.down and model.transition is None:
            # Gone without us: by hand, or its server died.
            self._spawn(self._look(model))
        elif not status.up and model.transition is None and model.backend is not None:
            # On its way down, or up again, by hand: the next run listens elsewhere, perhaps.
            model.activation = None
            self._spawn(self._retire_backend(model))
        for job in self.jobs.all():
            if job.model == name and status.text:
                self.jobs.set_phase(job, status.text)
        self._changed(model)

    async def _retire_backend(self, model: Model) -> None:
        backend, model.backend = model.backend, None
        if backend is not None:
            await backend.retire()

    async def _close_backend(self, model: Model) -> None:
        backend, model.backend = model.backend, None
        if backend is not None:
            await backend.close()

    def _changed(self, model: Model) -> None:
        self._tell(model.name)
        self._kick()

    def _tell(self, name: str) -> None:
        for listener in self.listeners:
            listener(name)

    def _kick(self) -> None:
        self._wake.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._own(asyncio.create_task(work))

    def _own(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the switcher failed", exc_info=error)


def _held(model: Model) -> tuple[int, ...]:
    """The GPUs of a model that is not out; one that is started by hand says only once it is up."""
    return model.config.gpus if model.held_gpus is None else model.held_gpus


def _load_checkpoint(name: str) -> Checkpoint | None:
    record = Checkpoint.load(name)
    if record is not None and not record.invalid and not record.valid:
        return record.invalidate(f"the image is missing from {record.directory}")
    return record
