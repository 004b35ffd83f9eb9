# SPDX-License-Identifier: MIT
"""org.llmux on D-Bus: one line a member, no logic.

No member takes long: what does is a job. What changes something asks first whether
its caller may. An error of errors.py goes to the caller by its D-Bus name; anything else is logged,
and the caller learns only that it was internal.
"""

import asyncio
import contextlib
import functools
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import asdict
from typing import Any, ParamSpec, TypeVar

from dbus_next import DBusError, RequestNameReply
from dbus_next.constants import NameFlag, PropertyAccess
from dbus_next.service import ServiceInterface, dbus_property, method, signal

from . import __version__, authority, names
from .authority import Action
from .bus import Bus
from .dbus_types import (
    Bool,
    Double,
    JobBegin,
    JobEnd,
    JobRows,
    ModelRows,
    ObjectPath,
    String,
    StringMap,
    Strings,
    UInt32,
    UInt64,
)
from .errors import Internal, LlmuxError, SystemdUnreachable
from .jobs import Job, Kind
from .state import State
from .switcher import Switcher

log = logging.getLogger(__name__)

BUS_NAME = "org.llmux"
MANAGER_PATH = "/Manager"

P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def _translated(member: str) -> Iterator[None]:
    """Translate exceptions, once, where D-Bus begins."""
    try:
        yield
    except LlmuxError as error:
        raise DBusError(error.dbus_name, str(error)) from None
    except Exception:
        log.exception("%s failed", member)
        raise DBusError(Internal.dbus_name, str(Internal("internal error"))) from None


def edge(function: Callable[P, R]) -> Callable[P, R]:
    """What everybody may call."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        with _translated(function.__name__):
            return function(*args, **kwargs)

    return guarded


def changing(
    action: Action | Callable[[Any], Action],
) -> Callable[[Callable[P, Any]], Callable[P, Coroutine[Any, Any, Any]]]:
    """What only those may call who may do `action`, or the action that its object names."""

    def decorate(function: Callable[P, Any]) -> Callable[P, Coroutine[Any, Any, Any]]:
        @functools.wraps(function)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
            with _translated(function.__name__):
                needed = action if isinstance(action, Action) else action(args[0])
                await authority.require(needed)
                result = function(*args, **kwargs)
                return await result if isinstance(result, Awaitable) else result

        return guarded

    return decorate


def reading(function: Callable[[Any], R]) -> Any:
    """A property that can be read and not be written."""
    return dbus_property(access=PropertyAccess.READ)(edge(function))


def _is_no_answer(record: logging.LogRecord) -> bool:
    """dbus-next logs each error that a method answers with, as if it were a crash of its own."""
    return not isinstance(sys.exc_info()[1], DBusError)


class ManagerInterface(ServiceInterface):
    """org.llmux.Manager at /Manager."""

    def __init__(self, switcher: Switcher, reload: Callable[[], Awaitable[None]]):
        super().__init__("org.llmux.Manager")
        self._switcher = switcher
        self._reload = reload

    @method()
    @changing(Action.SWITCH)
    def Switch(self, model: String) -> ObjectPath:
        """Make `model` serve: restore it, else start it cold. Returns the job."""
        return self._switcher.switch(model).path

    @method()
    @changing(Action.MANAGE)
    def Checkpoint(self, model: String) -> ObjectPath:
        """Drain `model` and write it to disk. Returns the job."""
        return self._switcher.checkpoint(model).path

    @method()
    @changing(Action.MANAGE)
    def Park(self, model: String) -> ObjectPath:
        """Drain `model` and freeze its unit. Returns the job."""
        return self._switcher.park(model).path

    @method()
    @changing(Action.MANAGE)
    def Warmup(self, model: String) -> ObjectPath:
        """Have a checkpoint of `model` on disk. Returns the job."""
        return self._switcher.warmup(model).path

    @method()
    @changing(Action.MANAGE)
    def Stop(self, model: String) -> ObjectPath:
        """Drain `model` and end it without a checkpoint. Returns the job."""
        return self._switcher.stop(model).path

    @method()
    @changing(Action.RELOAD)
    async def Reload(self) -> None:
        """Read the configuration again; an error leaves the running one in place."""
        await self._reload()

    @method()
    @edge
    def ListModels(self) -> ModelRows:
        """Name, state, object and unit of each model."""
        return [
            [name, self._switcher.state(name), names.object_path(name), names.unit(name)]
            for name in self._switcher.names()
        ]

    @method()
    @edge
    def GetModel(self, model: String) -> ObjectPath:
        """The object of a model, by its name or an alias."""
        return names.object_path(self._switcher.config.resolve(model))

    @method()
    @edge
    def ListJobs(self) -> JobRows:
        """Number, kind, model and object of each running job."""
        return [[j.number, j.kind, j.model, j.path] for j in self._switcher.jobs.all()]

    @reading
    def Version(self) -> String:
        return __version__

    @reading
    def ActiveModels(self) -> Strings:
        return [n for n in self._switcher.names() if self._switcher.state(n) is State.SERVING]

    @reading
    def QueueLength(self) -> UInt32:
        return self._switcher.queue_length()

    @signal()
    def JobNew(self, number: int, job: str, model: str) -> JobBegin:
        return [number, job, model]

    @signal()
    def JobRemoved(self, number: int, job: str, model: str, result: str) -> JobEnd:
        return [number, job, model, result]


class ModelInterface(ServiceInterface):
    """org.llmux.Model at /Model/<encoded name>."""

    def __init__(self, switcher: Switcher, name: str):
        super().__init__("org.llmux.Model")
        self._switcher = switcher
        self._name = name

    @reading
    def Name(self) -> String:
        return self._name

    @reading
    def Aliases(self) -> Strings:
        return list(self._switcher.model(self._name).config.aliases)

    @reading
    def State(self) -> String:
        return self._switcher.state(self._name)

    @reading
    def Unit(self) -> String:
        return names.unit(self._name)

    @reading
    def Endpoint(self) -> String:
        backend = self._switcher.model(self._name).backend
        return backend.endpoint if backend else ""

    @reading
    def InFlight(self) -> UInt32:
        return self._switcher.model(self._name).in_flight

    @reading
    def Queued(self) -> UInt32:
        return len(self._switcher.model(self._name).waiters)

    @reading
    def LastUsed(self) -> Double:
        """Unix time; 0 if never since llmuxd was started."""
        return self._switcher.model(self._name).last_used

    @reading
    def ActivatedBy(self) -> String:
        """`restore` or `cold` while it runs, else empty."""
        activation = self._switcher.model(self._name).activation
        return activation.way if activation else ""

    @reading
    def ActivationSeconds(self) -> Double:
        activation = self._switcher.model(self._name).activation
        return activation.seconds if activation else 0.0

    @reading
    def CheckpointValid(self) -> Bool:
        return not self._switcher.why_no_checkpoint(self._name)

    @reading
    def CheckpointWhyNot(self) -> String:
        return self._switcher.why_no_checkpoint(self._name)

    @reading
    def CheckpointSize(self) -> UInt64:
        """Bytes on disk."""
        record = self._switcher.model(self._name).checkpoint
        return record.size if record else 0

    @reading
    def CheckpointSeconds(self) -> Double:
        record = self._switcher.model(self._name).checkpoint
        return record.seconds if record else 0.0

    @reading
    def CheckpointTaken(self) -> Double:
        """Unix time; 0 if there is none."""
        record = self._switcher.model(self._name).checkpoint
        return record.taken_at if record else 0.0

    @reading
    def CheckpointIdentity(self) -> StringMap:
        """All that must be the same where it is restored."""
        record = self._switcher.model(self._name).checkpoint
        return asdict(record.identity) if record else {}

    @reading
    def Failures(self) -> UInt32:
        """Starts that failed since the last one that did not."""
        return self._switcher.model(self._name).failures

    @reading
    def LastError(self) -> String:
        return self._switcher.model(self._name).last_error


class JobInterface(ServiceInterface):
    """org.llmux.Job at /Job/<number>."""

    def __init__(self, switcher: Switcher, job: Job):
        super().__init__("org.llmux.Job")
        self._switcher = switcher
        self._job = job

    def action(self) -> Action:
        """Who may begin such a job may also cancel it."""
        return Action.SWITCH if self._job.kind is Kind.SWITCH else Action.MANAGE

    @method()
    @changing(action)
    def Cancel(self) -> None:
        """Give the job up, where it has not gone too far to turn back."""
        self._switcher.jobs.cancel(self._job.number)

    @reading
    def Kind(self) -> String:
        return self._job.kind

    @reading
    def Model(self) -> String:
        return self._job.model

    @reading
    def Phase(self) -> String:
        return self._job.phase

    @reading
    def Started(self) -> Double:
        """Unix time."""
        return self._job.started


class Control:
    """Exports the switcher on whatever bus connection there is."""

    def __init__(self, switcher: Switcher, reload: Callable[[], Awaitable[None]]):
        self._switcher = switcher
        self._manager = ManagerInterface(switcher, reload)
        self._models: dict[str, ModelInterface] = {}
        self._jobs: dict[int, JobInterface] = {}
        self._dirty: set[str] = set()
        self._seen: dict[str, dict[str, Any]] = {}
        self._bus: Bus | None = None
        logging.getLogger().addFilter(_is_no_answer)
        switcher.listeners.append(self.model_changed)
        switcher.jobs.on_new = self._job_new
        switcher.jobs.on_changed = self._job_changed
        switcher.jobs.on_removed = self._job_removed

    async def attach(self, bus: Bus) -> None:
        """Export everything on `bus`, a fresh connection, and take the name."""
        self._bus = bus
        self._models.clear()
        self._jobs.clear()
        bus.export(MANAGER_PATH, self._manager)
        self._seen[MANAGER_PATH] = _properties(self._manager)
        for name in self._switcher.names():
            self._export_model(name)
        for job in self._switcher.jobs.all():
            self._export_job(job)
        reply = await bus.request_name(BUS_NAME, NameFlag.DO_NOT_QUEUE)
        if reply not in (RequestNameReply.PRIMARY_OWNER, RequestNameReply.ALREADY_OWNER):
            raise SystemdUnreachable(
                f"another process owns the bus name {BUS_NAME}", "is llmuxd running already?"
            )

    def detach(self) -> None:
        """The connection is gone; the manager's interface can go to the next."""
        if self._bus is not None:
            self._bus.unexport(MANAGER_PATH)
        self._bus = None

    def model_changed(self, name: str) -> None:
        """Tell the bus which properties of the model are not what they were.

        All changes of one turn of the loop become one signal: a thousand requests let in at once
        would fill the socket, and dbus-next 0.2.3 takes a full socket for a broken one.
        """
        if self._bus is None:
            return
        if name in self._switcher.names() and name not in self._models:
            self._export_model(name)
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._flush)
        self._dirty.add(name)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, set()
        if self._bus is None:
            return
        for name in dirty:
            if name in self._switcher.names():
                self._emit_model(name)
            else:
                self._unexport_model(name)
        self._emit_changed(MANAGER_PATH, self._manager, _properties(self._manager))

    def _emit_model(self, name: str) -> None:
        interface = self._models[name]
        self._emit_changed(name, interface, _properties(interface))

    def _emit_changed(self, key: str, interface: ServiceInterface, current: dict[str, Any]) -> None:
        seen = self._seen.get(key, {})
        changed = {name: value for name, value in current.items() if seen.get(name) != value}
        if changed:
            self._seen[key] = current
            interface.emit_properties_changed(changed)

    def _export_model(self, name: str) -> None:
        assert self._bus is not None
        interface = ModelInterface(self._switcher, name)
        self._models[name] = interface
        self._seen[name] = _properties(interface)
        self._bus.export(names.object_path(name), interface)

    def _unexport_model(self, name: str) -> None:
        if self._bus is not None and self._models.pop(name, None) is not None:
            self._seen.pop(name, None)
            self._bus.unexport(names.object_path(name))

    def _export_job(self, job: Job) -> None:
        assert self._bus is not None
        interface = JobInterface(self._switcher, job)
        self._jobs[job.number] = interface
        self._bus.export(job.path, interface)

    def _job_new(self, job: Job) -> None:
        if self._bus is not None:
            self._export_job(job)
            self._manager.JobNew(job.number, job.path, job.model)

    def _job_changed(self, job: Job) -> None:
        interface = self._jobs.get(job.number)
        if interface is not None:
            interface.emit_properties_changed({"Phase": job.phase})

    def _job_removed(self, job: Job) -> None:
        if job.error is not None:
            log.warning("job %d (%s %s) failed: %s", job.number, job.kind, job.model, job.error)
        if self._bus is not None and job.result is not None:
            self._manager.JobRemoved(job.number, job.path, job.model, job.result)
        if self._bus is not None and self._jobs.pop(job.number, None) is not None:
            self._bus.unexport(job.path)


def _properties(interface: ServiceInterface) -> dict[str, Any]:
    return {
        prop.name: getattr(interface, prop.name)
        for prop in ServiceInterface._get_properties(interface)
    }
