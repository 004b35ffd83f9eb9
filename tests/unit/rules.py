# SPDX-License-Identifier: MIT
"""The switcher's eight rules, as an eye on a switcher that runs over fake units.

What breaks a rule is collected in `broken`, with the rule's number. Rules are looked at when a verb
begins, and whenever the clock is about to move: then all has happened that can happen now.
"""

import asyncio
import itertools
from dataclasses import dataclass, field
from math import inf

from llmuxd.errors import LlmuxError
from llmuxd.jobs import Kind
from llmuxd.model.activation import is_parked
from llmuxd.policy import Gpu, Stage
from llmuxd.state import UnitStatus
from llmuxd.switcher import Model, Switcher, pauses
from llmuxd.switcher.models import PRESSING, Wish

from .watched_units import WatchedUnits

EPSILON = 1e-6
# How long a client takes to see that its connection was closed.
BLINK = 0.25
# The jobs that want their model to serve.
_WISHES = (Kind.SWITCH, Kind.WARMUP, Kind.TUNE, Kind.PRELOAD)


def clock() -> float:
    return asyncio.get_running_loop().time()


@dataclass(eq=False)
class Request:
    """One client's: waits, is served for so many seconds, and may leave before."""

    model: str
    seconds: float
    arrived: float
    task: asyncio.Task[None] | None = None
    admitted: float = inf
    ended: float = inf
    cut: bool = False
    error: Exception | None = None

    @property
    def waits(self) -> bool:
        return self.admitted == inf and self.ended == inf

    @property
    def in_flight(self) -> bool:
        return self.admitted < inf and self.ended == inf


@dataclass(eq=False)
class Rules:
    """Watches `switcher` over `units`; set `switcher` anew when another one takes over."""

    switcher: Switcher
    units: WatchedUnits
    gpus: dict[int, Gpu]
    requests: list[Request] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    watching: bool = True

    def __post_init__(self) -> None:
        self.units.told = self._verb
        self.units.started = self._started
        # A server that ended took its connections with it.
        self._runs: dict[str, int] = {}
        # When the last one who wanted the model went away, and when an operator wanted anything.
        self._gone: dict[str, float] = {}
        self._failed: dict[str, tuple[int, float]] = {}
        self._changed_at = self._measured_at = 0.0
        self._leaving: dict[str, object] = {}
        self._up_since: dict[str, float] = {}
        self.take_over(self.switcher)

    def take_over(self, switcher: Switcher) -> None:
        """This one decides from now on; what the one before knew of failures is forgotten."""
        self.switcher = switcher
        self._failed.clear()
        inner = self.units.changed

        def changed(name: str, status: UnitStatus) -> None:
            self._unit_changed(name, status)
            inner(name, status)

        self.units.changed = changed

    # What happens

    def ask(self, model: str, seconds: float) -> Request:
        """A request arrives."""
        request = Request(model, seconds, clock())
        self.requests.append(request)
        request.task = asyncio.create_task(self._be_served(request))
        return request

    def operator(self, name: str) -> None:
        """An operator wants something of the model: a cool-down of it may be over."""
        self._failed.pop(name, None)
        self._gone[name] = clock()

    def reconfigured(self) -> None:
        """Who was sent away for whom is not to be told from the configuration any more.

        What failed may have been mended.
        """
        self._changed_at = clock()
        self._failed.clear()

    def measured(self) -> None:
        """The GPUs' memory is another: who was let in just now was let in by what was before."""
        self._measured_at = clock()

    def excuse(self, name: str) -> None:
        """The server of the model was lost, by whatever was done to it: its requests may end."""
        self._runs[name] = self._runs.get(name, 0) + 1

    async def _be_served(self, request: Request) -> None:
        try:
            async with self.switcher.request(request.model) as backend:
                request.admitted = clock()
                run = self._runs.get(request.model, 0)
                end = request.admitted + request.seconds
                while clock() < end and self._runs.get(request.model, 0) == run:
                    if backend.closed:
                        request.cut = True
                        self._cut(request)
                        break
                    await asyncio.sleep(min(BLINK, end - clock()))
        except LlmuxError as error:
            request.error = error
        finally:
            request.ended = clock()
            self._gone[request.model] = clock()

    def _unit_changed(self, name: str, status: UnitStatus) -> None:
        if not status.up:
            self._runs[name] = self._runs.get(name, 0) + 1
            self._up_since.pop(name, None)
        elif name not in self._up_since or is_parked(name):
            self._up_since[name] = clock()

    # What is looked at

    def breaks(self, rule: int, what: str) -> None:
        """Note it down."""
        if self.watching:
            self.broken.append(f"rule {rule} at {clock():.2f}: {what}")

    def _model(self, name: str) -> Model | None:
        return self.switcher._fleet.models.get(name)

    def _stage(self, model: Model) -> Stage:
        return self.switcher._fleet.stage(model)

    def _wanted(self, name: str) -> bool:
        """Whether somebody waits for the model, or did until just now."""
        if clock() in (self._gone.get(name), self._changed_at):
            return True
        model = self._model(name)
        if model is not None and any(w.wish is not Wish.REQUEST for w in model.waiters):
            return True  # of a job that was cancelled too late, perhaps
        jobs = self.switcher.jobs.all()
        return any(request.waits for request in self.requests if request.model == name) or any(
            job.kind in _WISHES for job in jobs if job.model == name
        )

    def _verb(self, verb: str, name: str) -> None:
        model = self._model(name)
        if model is None or self.switcher._admission.stopping:
            return
        coming = model.moving is Stage.COMING
        if verb == "start" or (verb == "reload" and coming and self._wanted(name)):
            self._check_room(model)
        if verb == "start":
            if not self._wanted(name):
                self.breaks(4, f"{name} is started, and nobody waits for it")
            self._check_cool_down(model)
        if verb in ("stop", "reload") and not coming:
            self._check_leaving(model)

    def _check_room(self, model: Model) -> None:
        """Rule 7: whoever comes finds the room that it needs."""
        if not model.config.device_names and self._comes_back(model):
            return  # it takes nothing of a GPU
        if clock() in (self._changed_at, self._measured_at):
            return  # it was decided before it needed other room, or found it
        for number in self.switcher._fleet.place(model):
            gpu = self.gpus.get(number)
            others = [
                other
                for name in self.units.holders()
                if name != model.name and number in self.units.gpus.get(name, ())
                # By hand, after it was decided that this one comes.
                if self.units.strangers.get(name) != clock()
                if (other := self._model(name)) is not None
            ]
            sizes = [model.config.vram, *(other.config.vram for other in others)]
            told = [size for size in sizes if size is not None]
            if others and (gpu is None or len(told) < len(sizes)):
                names = [other.name for other in others]
                self.breaks(7, f"{model.name} comes to GPU {number}, where {names} are")
            elif gpu and len(told) == len(sizes) and sum(told) + gpu.foreign > gpu.total:
                self.breaks(7, f"{model.name} comes to GPU {number}, which has not the room")

    def _holds_device(self, name: str) -> bool:
        model = self._model(name)
        return model is None or bool(model.config.device_names)

    def _comes_back(self, model: Model) -> bool:
        return self.units.status(model.name).up or not self.switcher.why_no_checkpoint(model.name)

    def _check_cool_down(self, model: Model) -> None:
        """Rule 5: one failure is tried again after a while, and each further one later."""
        count, when = self._failed.get(model.name, (0, 0.0))
        if count:
            pause = pauses.COOL_DOWN[min(count, len(pauses.COOL_DOWN)) - 1]
            if clock() < when + pause - EPSILON:
                self.breaks(5, f"{model.name} is started {clock() - when:.1f} s after it failed")

    def _check_leaving(self, model: Model) -> None:
        for request in self.requests:
            if request.model != model.name:
                continue
            if request.in_flight and not request.cut and request.admitted < clock():
                self.breaks(1, f"{model.name} is sent away while it serves")
            since = self._up_since.get(model.name, 0.0)
            if request.waits and request.arrived < since and not model.commanded:
                self.breaks(2, f"{model.name} leaves before it served who woke it")
        if self._leaving.get(model.name) is model.transition:
            return  # by the second way out, as the first failed; it was wanted away then
        self._leaving[model.name] = model.transition
        if model.commanded or self._may_expire(model) or model.draining_since <= self._changed_at:
            return
        # One that was started by hand while this one drained has taken the place already.
        # And who came beside it has it, and may have served already who wanted it.
        met = {name for name in self.units.holders() if not self._holds_device(name)}
        there = (set(self.units.holders()) & self.units.strangers.keys()) | met
        wanted = any(
            (self._wanted(other.name) or other.name in there)
            and set(self.switcher._fleet.place(other)) & set(model.held)
            for other in self.switcher._fleet.models.values()
            if other is not model
        )
        if not wanted:
            self.breaks(4, f"{model.name} is sent away, and nobody waits for its place")

    def _may_expire(self, model: Model) -> bool:
        ttl = model.config.ttl
        return ttl is not None and clock() >= model.idle_since + ttl - EPSILON

    def _started(self, name: str, good: bool) -> None:
        count, _ = self._failed.get(name, (0, 0.0))
        if good:
            self._failed.pop(name, None)
        else:
            self._failed[name] = (count + 1, clock())

    def _cut(self, request: Request) -> None:
        """Rule 1: only an operator's command cuts, and only when the time for it is over."""
        model = self._model(request.model)
        if model is None:
            return
        limit = model.config.drain_timeout
        forced = limit is not None and clock() >= model.draining_since + limit - EPSILON
        if model.moving not in (Stage.DRAINING, Stage.LEAVING) or not forced:
            self.breaks(1, f"a request of {model.name} is cut")

    def before_the_clock_moves(self) -> None:
        """What must not last."""
        if not self.watching or self.switcher._admission.stopping:
            return
        for model in self.switcher._fleet.models.values():
            if self._stage(model) is Stage.IN and model.waiters:
                self.breaks(6, f"{model.name} serves, and not all who wait for it")
            orphaned = model.name in self.switcher._decider._following._orphans
            if orphaned and not model.promised and self._stage(model) is Stage.OUT:
                self.breaks(4, f"{model.name} is waited for by a job that was cancelled in time")
            self._check_refusals(model)
        for name in self.units.poised:
            following = self._model(name)
            if following is None or not (following.promised or following.transition):
                self.breaks(8, f"{name} is poised, and its place is not promised to it")
        self._check_the_latest()

    def _check_refusals(self, model: Model) -> None:
        """Rule 5: who asks in the cool-down of a model that keeps failing is told so at once."""
        count, when = self._failed.get(model.name, (0, 0.0))
        pause = pauses.COOL_DOWN[min(count, len(pauses.COOL_DOWN)) - 1] if count else 0.0
        if count < 2 or clock() >= when + pause or self._stage(model) is not Stage.OUT:
            return
        if any(waiter.wish is Wish.REQUEST for waiter in model.waiters):
            self.breaks(5, f"{model.name} keeps failing, and a request waits for it")

    def _check_the_latest(self) -> None:
        """Rule 3: whose time is up, and longest so, has somebody moving for its sake."""
        waiting = [
            (self._deadline(model), model)
            for model in self.switcher._fleet.models.values()
            if self._stage(model) is Stage.OUT
            and self._deadline(model) < inf
            and model.may_start_at <= clock()
        ]
        if not waiting:
            return
        deadline, latest = min(waiting, key=lambda it: it[0])
        if deadline >= clock() - EPSILON:
            return
        for other in self.switcher._fleet.models.values():
            if not set(other.held) & set(self.switcher._fleet.place(latest)):
                continue
            moving = self._stage(other) in (Stage.COMING, Stage.DRAINING, Stage.LEAVING)
            if moving or other.may_leave_at > clock():
                return
        late = clock() - deadline
        self.breaks(3, f"{latest.name} waits {late:.1f} s too long, and nobody moves")

    def _deadline(self, model: Model) -> float:
        arrived = [w.arrived for w in model.waiters if w.wish in PRESSING]
        return arrived[0] + model.config.max_wait if arrived else inf

    def nobody_is_crowded(self) -> None:
        """Rule 7 at rest, where nobody but llmuxd brought in who is in."""
        fleet = self.switcher._fleet
        here = [model for model in fleet.models.values() if self._stage(model) is Stage.IN]
        for model, other in itertools.combinations(here, 2):
            shared = set(model.held) & set(other.held)
            if shared and None in (model.config.vram, other.config.vram):
                self.breaks(7, f"{model.name} and {other.name} both stay on GPU {min(shared)}")

    def at_the_end(self) -> None:
        """Rule 8, and that everybody was answered, rightly or with an error that has a name."""
        for request in self.requests:
            if request.ended == inf:
                self.breaks(8, f"a request of {request.model} hangs")
        for model in self.switcher._fleet.models.values():
            if model.in_flight or model.waiters:
                self.breaks(8, f"{model.name} still has {model.in_flight} and {model.waiters}")
            if model.transition is not None or model.moving is not None:
                self.breaks(8, f"{model.name} is on its way for ever")
        for job in self.switcher.jobs.all():
            self.breaks(8, f"the {job.kind} of {job.model} hangs")
        if self.units.poised:
            self.breaks(8, f"{[*self.units.poised]} are poised for ever")
        if self.switcher.queue_length():
            self.breaks(8, f"the queue counts {self.switcher.queue_length()}")
