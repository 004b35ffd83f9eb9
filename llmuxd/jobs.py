# SPDX-License-Identifier: MIT
"""Work that an operator asked for and that takes time."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Any

from .errors import Internal, LlmuxError, NoSuchJob

log = logging.getLogger(__name__)


# A job's progress is told anew after so much of its expected time.
STEP = 0.05


class Kind(StrEnum):
    """What a job does."""

    SWITCH = "switch"
    PRELOAD = "preload"
    CHECKPOINT = "checkpoint"
    PARK = "park"
    WARMUP = "warmup"
    TUNE = "tune"
    STOP = "stop"


class Result(StrEnum):
    """How a job ended, in the words of systemd's JobRemoved."""

    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"


class Job:
    """One piece of work. `started` is Unix time; `error` is set where it failed.

    `expected`: the seconds that it takes as a rule; 0 where that is not known. `progress`: how
    much of them is over, in percent, never 100 before the end. `step`: which of several it is at,
    told before each phase; empty where there is but one.
    """

    def __init__(self, number: int, kind: Kind, model: str, expected: float):
        self.number = number
        self.kind = kind
        self.model = model
        self.expected = expected
        self.started = time.time()
        self.phase = "waiting"
        self.step = ""
        self.progress = 0
        self.error: LlmuxError | None = None
        self.result: Result | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def path(self) -> str:
        """Its D-Bus object."""
        return f"/Job/{self.number}"


Work = Callable[[Job], Coroutine[Any, Any, None]]


class Jobs:
    """The running jobs. `on_new` and `on_removed` are told as they come and go."""

    def __init__(self) -> None:
        self.on_new: Callable[[Job], None] = lambda job: None
        self.on_changed: Callable[[Job], None] = lambda job: None
        self.on_removed: Callable[[Job], None] = lambda job: None
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}

    def add(self, kind: Kind, model: str, work: Work, expected: float = 0.0) -> Job:
        """Start `work`; returns at once, with the job. `expected`: its seconds, as a rule."""
        job = Job(next(self._numbers), kind, model, expected)
        self._jobs[job.number] = job
        self.on_new(job)
        job.task = asyncio.create_task(self._run(job, work), name=f"job {job.number} {kind}")
        if expected > 0:
            self._advance(job, asyncio.get_running_loop().time())
        # Not in the task itself: one that is cancelled before its first step never runs at all.
        job.task.add_done_callback(lambda task: self._ended(job))
        return job

    def get(self, number: int) -> Job:
        """The running job of this number."""
        try:
            return self._jobs[number]
        except KeyError:
            raise NoSuchJob(f"there is no job {number}", "it may have ended") from None

    def all(self) -> list[Job]:
        """Every job that runs, oldest first."""
        return list(self._jobs.values())

    def set_phase(self, job: Job, phase: str) -> None:
        """Tell what the job does now."""
        if job.phase != phase:
            job.phase = phase
            self.on_changed(job)

    def cancel(self, number: int) -> None:
        """Give the job up, where it has not gone too far to turn back."""
        task = self.get(number).task
        if task is not None:
            task.cancel()

    async def overrule(self, job: Job, error: LlmuxError) -> None:
        """The same, and wait for its end: it has failed by `error`."""
        job.error = error
        if job.task is not None:
            job.task.cancel()
            await asyncio.wait([job.task])

    async def close(self) -> None:
        """Cancel all and wait for their ends."""
        tasks = [job.task for job in self.all() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _advance(self, job: Job, begin: float) -> None:
        """Tell how much of the time is over, again and again until the job ends."""
        if job.result is not None:
            return
        loop = asyncio.get_running_loop()
        percent = min(int((loop.time() - begin) / job.expected * 100), 99)
        if job.progress != percent:
            job.progress = percent
            self.on_changed(job)
        if percent < 99:
            loop.call_later(max(job.expected * STEP, 0.1), self._advance, job, begin)

    async def _run(self, job: Job, work: Work) -> None:
        try:
            await work(job)
            job.result = Result.DONE
        except LlmuxError as error:
            self._failed(job, error)
        except asyncio.CancelledError:
            if job.error is None:
                job.result = Result.CANCELED
            else:
                self._failed(job, job.error)
        except Exception:
            log.exception("job %d (%s %s) crashed", job.number, job.kind, job.model)
            self._failed(job, Internal("internal error"))

    def _failed(self, job: Job, error: LlmuxError) -> None:
        job.result, job.error = Result.FAILED, error
        self.set_phase(job, f"failed: {error}")

    def _ended(self, job: Job) -> None:
        if job.result is None and job.error is not None:
            self._failed(job, job.error)
        elif job.result is None:
            job.result = Result.CANCELED
        del self._jobs[job.number]
        self.on_removed(job)
