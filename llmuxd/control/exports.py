# SPDX-License-Identifier: MIT
"""What is on the bus, and who is told when it changes."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from dbus_next import RequestNameReply
from dbus_next.constants import NameFlag
from dbus_next.service import ServiceInterface

from .. import names
from ..bus import Bus
from ..errors import SystemdUnreachable
from ..events import Event, about
from ..gpus import Gpus
from ..jobs import Job
from ..switcher import Switcher
from .edge import is_no_answer
from .job import JobInterface
from .manager import ManagerInterface
from .model import ModelInterface

log = logging.getLogger(__name__)

BUS_NAME = "org.llmux"
MANAGER_PATH = "/Manager"
# Seconds between two rounds of PropertiesChanged.
PAUSE = 0.02


class Control:
    """Exports the switcher on whatever bus connection there is."""

    def __init__(self, switcher: Switcher, gpus: Gpus, reload: Callable[[], Awaitable[None]]):
        self._switcher = switcher
        self._manager = ManagerInterface(switcher, gpus, reload)
        self._models: dict[str, ModelInterface] = {}
        self._jobs: dict[int, JobInterface] = {}
        self._dirty: set[str] = set()
        self._seen: dict[str, dict[str, Any]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._flushed = -math.inf
        self._bus: Bus | None = None
        logging.getLogger().addFilter(is_no_answer)
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
        """Tell the bus which properties of the model are not what they were."""
        if self._bus is None:
            return
        if name in self._switcher.names() and name not in self._models:
            self._export_model(name)
        self._dirty.add(name)
        self._flush_soon()

    def gpus_changed(self) -> None:
        """There is another measurement."""
        if self._bus is not None:
            self._flush_soon()

    def _flush_soon(self) -> None:
        """At once, but no more often than each PAUSE: who listens is to keep pace with a crowd."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._flushed + PAUSE), self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        dirty, self._dirty = self._dirty, set()
        self._flushed = asyncio.get_running_loop().time()
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
        self._emit_changed(names.object_path(name), interface, _properties(interface))

    def _emit_changed(
        self, path: str, interface: ServiceInterface, current: dict[str, Any]
    ) -> None:
        seen = self._seen.get(path, {})
        changed = {name: value for name, value in current.items() if seen.get(name) != value}
        if changed:
            self._seen[path] = current
            interface.emit_properties_changed(changed)

    def _export_model(self, name: str) -> None:
        assert self._bus is not None
        interface = ModelInterface(self._switcher, name)
        self._models[name] = interface
        path = names.object_path(name)
        self._seen[path] = _properties(interface)
        self._bus.export(path, interface)

    def _unexport_model(self, name: str) -> None:
        if self._bus is not None and self._models.pop(name, None) is not None:
            path = names.object_path(name)
            self._seen.pop(path, None)
            self._bus.unexport(path)

    def _export_job(self, job: Job) -> None:
        assert self._bus is not None
        interface = JobInterface(self._switcher, job)
        self._jobs[job.number] = interface
        self._seen[job.path] = _properties(interface)
        self._bus.export(job.path, interface)

    def _job_new(self, job: Job) -> None:
        if self._bus is not None:
            self._export_job(job)
            self._manager.JobNew(job.number, job.path, job.model)

    def _job_changed(self, job: Job) -> None:
        interface = self._jobs.get(job.number)
        if interface is not None:
            self._emit_changed(job.path, interface, _properties(interface))

    def _job_removed(self, job: Job) -> None:
        _log_end(job)
        # Whoever waits for the end is to find everything as it left it.
        self._flush()
        if self._bus is not None and job.result is not None:
            self._manager.JobRemoved(job.number, job.path, job.model, job.result)
        if self._bus is not None and self._jobs.pop(job.number, None) is not None:
            self._seen.pop(job.path, None)
            self._bus.unexport(job.path)


def _log_end(job: Job) -> None:
    failed = job.error is not None
    log.log(
        logging.WARNING if failed else logging.INFO,
        "job %d (%s %s) %s", job.number, job.kind, job.model,
        f"failed: {job.error}" if failed else job.result,
        extra=about(
            Event.JOB_FAILED if failed else Event.JOB_ENDED,
            model=job.model, job=job.number, phase=job.kind, seconds=time.time() - job.started,
        ),
    )  # fmt: skip


def _properties(interface: ServiceInterface) -> dict[str, Any]:
    return {
        prop.name: getattr(interface, prop.name)
        for prop in ServiceInterface._get_properties(interface)
    }
