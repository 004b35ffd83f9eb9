# SPDX-License-Identifier: MIT
"""org.llmux.Manager."""

from collections.abc import Awaitable, Callable

from dbus_next.service import ServiceInterface, method, signal

from .. import __version__, names
from ..authority import Action
from ..dbus_types import (
    GpuRows,
    JobBegin,
    JobEnd,
    JobRows,
    ModelRows,
    ObjectPath,
    String,
    Strings,
    UInt32,
)
from ..gpus import Gpus
from ..state import State
from ..switcher import Switcher
from .edge import changing, edge, reading


class ManagerInterface(ServiceInterface):
    """org.llmux.Manager at /Manager."""

    def __init__(self, switcher: Switcher, gpus: Gpus, reload: Callable[[], Awaitable[None]]):
        super().__init__("org.llmux.Manager")
        self._switcher = switcher
        self._gpus = gpus
        self._reload = reload

    @method()
    @changing(Action.SWITCH)
    def Switch(self, model: String) -> ObjectPath:
        """Make `model` serve: restore it, else start it cold. Returns the job."""
        return self._switcher.switch(model).path

    @method()
    @changing(Action.SWITCH)
    def Preload(self, model: String) -> ObjectPath:
        """Make `model` serve once nobody else wants its place. Returns the job."""
        return self._switcher.preload(model).path

    @method()
    @changing(Action.MANAGE)
    def Pin(self, model: String) -> None:
        """Never send `model` away for another one."""
        self._switcher.pin(model, True)

    @method()
    @changing(Action.MANAGE)
    def Unpin(self, model: String) -> None:
        """Let `model` leave for another one."""
        self._switcher.pin(model, False)

    @method()
    @changing(Action.MANAGE)
    def Checkpoint(self, model: String) -> ObjectPath:
        """Drain `model` and write it to disk. Returns the job."""
        return self._switcher.checkpoint(model).path

    @method()
    @changing(Action.MANAGE)
    def Park(self, model: String) -> ObjectPath:
        """Drain `model` and freeze its container. Returns the job."""
        return self._switcher.park(model).path

    @method()
    @changing(Action.MANAGE)
    def Warmup(self, model: String) -> ObjectPath:
        """Have a checkpoint of `model` on disk. Returns the job."""
        return self._switcher.warmup(model).path

    @method()
    @changing(Action.MANAGE)
    def Tune(self, model: String) -> ObjectPath:
        """Warm `model` up by what it best lets go of, after that was measured. Returns the job."""
        return self._switcher.tune(model).path

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

    @reading
    def GPUs(self) -> GpuRows:
        """Number, name, and the bytes of memory: in all, in use, in use by others than models."""
        return [[g.number, g.name, g.total, g.used, g.foreign] for g in self._gpus.measured]

    @signal()
    def JobNew(self, number: int, job: str, model: str) -> JobBegin:
        return [number, job, model]

    @signal()
    def JobRemoved(self, number: int, job: str, model: str, result: str) -> JobEnd:
        return [number, job, model, result]
