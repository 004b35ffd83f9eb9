# SPDX-License-Identifier: MIT
"""org.llmux.Job."""

from dbus_next.service import ServiceInterface, method

from ..authority import Action
from ..dbus_types import Double, String, UInt32
from ..jobs import Job, Kind
from ..switcher import Switcher
from .edge import changing, reading


class JobInterface(ServiceInterface):
    """org.llmux.Job at /Job/<number>."""

    def __init__(self, switcher: Switcher, job: Job):
        super().__init__("org.llmux.Job")
        self._switcher = switcher
        self._job = job

    def action(self) -> Action:
        """Who may begin such a job may also cancel it."""
        switches = self._job.kind in (Kind.SWITCH, Kind.PRELOAD)
        return Action.SWITCH if switches else Action.MANAGE

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
    def Progress(self) -> UInt32:
        """Percent."""
        return self._job.progress

    @reading
    def ExpectedSeconds(self) -> Double:
        """0 where it is not known."""
        return self._job.expected

    @reading
    def Started(self) -> Double:
        """Unix time."""
        return self._job.started
