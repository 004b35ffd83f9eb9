# SPDX-License-Identifier: MIT
import asyncio

import pytest

from llmuxd.errors import ModelFailed, NoSuchJob
from llmuxd.jobs import Job, Jobs, Kind, Result


class Told:
    """What a listener is told, in order."""

    def __init__(self, jobs: Jobs):
        self.lines: list[tuple[object, ...]] = []
        self.ended = asyncio.Event()
        jobs.on_new = lambda job: self.lines.append(("new", job.number))
        jobs.on_changed = lambda job: self.lines.append(("phase", job.number, job.phase))
        jobs.on_removed = self._removed

    def _removed(self, job: Job) -> None:
        self.lines.append(("removed", job.number, job.result))
        self.ended.set()


async def nothing(job: Job) -> None:
    await asyncio.sleep(0)


async def forever(job: Job) -> None:
    await asyncio.Event().wait()


async def test_a_job_comes_tells_and_goes() -> None:
    jobs = Jobs()
    told = Told(jobs)

    async def work(job: Job) -> None:
        jobs.set_phase(job, "draining")
        jobs.set_phase(job, "draining")

    job = jobs.add(Kind.SWITCH, "a", work)
    assert jobs.all() == [job] and jobs.get(job.number) is job
    assert (job.path, job.kind, job.model) == ("/Job/1", "switch", "a")
    await told.ended.wait()
    assert told.lines == [("new", 1), ("phase", 1, "draining"), ("removed", 1, Result.DONE)]
    assert jobs.all() == []


async def test_numbers_are_never_used_twice() -> None:
    jobs = Jobs()
    told = Told(jobs)
    first = jobs.add(Kind.STOP, "a", nothing)
    await told.ended.wait()
    assert jobs.add(Kind.STOP, "a", nothing).number == first.number + 1
    await jobs.close()


async def test_a_typed_failure_is_kept() -> None:
    jobs = Jobs()
    told = Told(jobs)
    failure = ModelFailed("it broke", "mend it")

    async def work(job: Job) -> None:
        raise failure

    job = jobs.add(Kind.PARK, "a", work)
    await told.ended.wait()
    assert job.error is failure and job.result is Result.FAILED
    assert job.phase == "failed: it broke (mend it)"


async def test_a_bug_ends_the_job_and_tells_nothing_of_itself() -> None:
    jobs = Jobs()
    told = Told(jobs)

    async def work(job: Job) -> None:
        raise RuntimeError("secret /path")

    job = jobs.add(Kind.PARK, "a", work)
    await told.ended.wait()
    assert job.result is Result.FAILED and jobs.all() == []
    assert job.error is not None and "secret" not in f"{job.error}{job.phase}"


async def test_cancelled_job_says_so() -> None:
    jobs = Jobs()
    told = Told(jobs)
    job = jobs.add(Kind.SWITCH, "a", forever)
    await asyncio.sleep(0)
    jobs.cancel(job.number)
    await told.ended.wait()
    assert told.lines[-1] == ("removed", 1, Result.CANCELED)


async def test_job_cancelled_before_its_first_step_is_gone_too() -> None:
    jobs = Jobs()
    told = Told(jobs)
    jobs.cancel(jobs.add(Kind.SWITCH, "a", forever).number)
    await told.ended.wait()
    assert told.lines[-1] == ("removed", 1, Result.CANCELED)
    assert jobs.all() == []


async def test_ended_job_cannot_be_cancelled() -> None:
    jobs = Jobs()
    with pytest.raises(NoSuchJob, match="there is no job 7"):
        jobs.cancel(7)


async def test_close_cancels_all() -> None:
    jobs = Jobs()
    told = Told(jobs)
    begun = jobs.add(Kind.SWITCH, "a", forever)
    await asyncio.sleep(0)
    fresh = jobs.add(Kind.SWITCH, "b", forever)
    await jobs.close()
    await asyncio.sleep(0)
    assert (begun.result, fresh.result, jobs.all()) == (Result.CANCELED, Result.CANCELED, [])
    assert [line[0] for line in told.lines] == ["new", "new", "removed", "removed"]


async def test_one_that_is_overruled_has_failed_and_says_why() -> None:
    jobs = Jobs()
    told = Told(jobs)
    job = jobs.add(Kind.TUNE, "a", forever)
    await asyncio.sleep(0)
    await jobs.overrule(job, ModelFailed("it was stopped"))
    assert told.lines[1:] == [
        ("phase", 1, "failed: it was stopped"), ("removed", 1, Result.FAILED),
    ]  # fmt: skip
    assert jobs.all() == []


async def test_so_has_one_that_was_not_begun() -> None:
    jobs = Jobs()
    job = jobs.add(Kind.TUNE, "a", forever)
    await jobs.overrule(job, ModelFailed("it was stopped"))
    assert (job.result, str(job.error)) == (Result.FAILED, "it was stopped")
