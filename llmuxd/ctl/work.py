# SPDX-License-Identifier: MIT
"""llmuxctl switch, preload, checkpoint, park, warmup, stop: begin a job and wait for its end."""

import argparse
import asyncio
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import LlmuxError
from . import interrupt, tuned
from .daemon import Daemon
from .exits import Exit
from .interrupt import Choice
from .models import print_json
from .progress import Progress

METHODS = {
    "switch": "Switch",
    "preload": "Preload",
    "checkpoint": "Checkpoint",
    "park": "Park",
    "stop": "Stop",
    "warmup": "Warmup",
    "tune": "Tune",
}


@dataclass(frozen=True)
class Outcome:
    """How a job ended, as --json prints it. `result` is D-Bus's, or `left` where it goes on.

    `job` is empty where it was refused, of several.
    """

    job: str
    kind: str
    model: str
    result: str
    seconds: float
    error: str

    @property
    def status(self) -> Exit:
        """The exit status."""
        match self.result:
            case "done":
                return Exit.DONE
            case "canceled" | "left":
                return Exit.INTERRUPTED
            case _:
                return Exit.FAILED

    def __str__(self) -> str:
        match self.result:
            case "done":
                return f"{self.model}: {self.kind} done in {self.seconds:.2f} s"
            case "left":
                number = self.job.rpartition("/")[2]
                return f"{self.model}: job {number} goes on; 'llmuxctl cancel {number}' ends it"
            case _:
                text = f"{self.model}: {self.kind} {self.result} after {self.seconds:.2f} s"
                return f"{text}: {self.error}" if self.error else text


async def run(arguments: argparse.Namespace) -> int:
    """One job for each model; one that is interrupted is the last, one that is refused is not."""
    outcomes: list[Outcome] = []
    found: list[dict[str, Any]] = []
    async with Daemon(arguments.host) as daemon:
        await daemon.listen()
        for model in await _models(daemon, arguments.model):
            kind = await _kind(daemon, arguments, model)
            try:
                outcomes.append(await _follow(daemon, kind, model))
            except LlmuxError as error:
                if isinstance(arguments.model, str):
                    raise
                outcomes.append(Outcome("", kind, model, "failed", 0.0, str(error)))
            found.append(asdict(outcomes[-1]))
            if not arguments.json:
                _tell(outcomes[-1])
            if kind == "tune" and outcomes[-1].job and outcomes[-1].result != "left":
                found[-1] |= await _measured(daemon, outcomes[-1], arguments.json)
            if outcomes[-1].status is Exit.INTERRUPTED:
                break
    if arguments.json:
        print_json(found if isinstance(arguments.model, list) else found[0])
    return max((outcome.status for outcome in outcomes), default=Exit.DONE)


async def _models(daemon: Daemon, wanted: str | list[str]) -> list[str]:
    """warmup takes several, and means all of them where none is named."""
    if isinstance(wanted, str):
        return [wanted]
    for model in wanted:
        # A name that nobody has is told before the first of them is started.
        await daemon.manager("GetModel", model)
    return wanted or [str(row[0]) for row in await daemon.manager("ListModels")]


async def _kind(daemon: Daemon, arguments: argparse.Namespace, model: str) -> str:
    """What is done to it. Tuned already it is only warmed up, where it was not named."""
    if not getattr(arguments, "tune", False):
        return str(arguments.command)
    if not arguments.model and not (await daemon.model(model))["TuningWhyNot"]:
        return "warmup"
    return "tune"


async def _measured(daemon: Daemon, outcome: Outcome, json: bool) -> dict[str, Any]:
    """What a tune measured, also one that did not get to its end; told where not by --json."""
    try:
        shown = await daemon.model(outcome.model)
    except LlmuxError:
        # It left the configuration meanwhile, and the job has said so.
        return {}
    done = outcome.status is Exit.DONE
    if not json:
        told = tuned.lines(outcome.model, shown) if done else tuned.so_far(shown)
        print("".join(f"{line}\n" for line in told), end="", flush=True)
    return tuned.to_json(shown)


def _tell(outcome: Outcome) -> None:
    if outcome.status is Exit.DONE:
        print(outcome, flush=True)
    else:
        print(f"llmuxctl: {outcome}", file=sys.stderr)


async def _follow(daemon: Daemon, kind: str, model: str) -> Outcome:
    """Begin a job, show what it does, end with its result. Ctrl-C asks what is to become of it."""
    begin = time.monotonic()
    # Ctrl-C ends this at once: there is no job yet whose fate could be asked for.
    job = await daemon.manager(METHODS[kind], model)
    with interrupt.caught() as pressed, Progress(model) as progress:
        waiting = asyncio.create_task(_wait(daemon, job, progress))
        try:
            while not await interrupt.first(waiting, pressed):
                with progress.aside():
                    choice = await interrupt.ask("Cancel this job? [y/N] ", waiting, pressed)
                if choice is Choice.LEAVE:
                    return Outcome(job, kind, model, "left", time.monotonic() - begin, "")
                if choice is Choice.CANCEL:
                    await _cancel(daemon, job)
            result, phase = await waiting
        finally:
            waiting.cancel()
    why = phase.removeprefix("failed: ") if result == "failed" else ""
    return Outcome(job, kind, model, result, time.monotonic() - begin, why)


async def _wait(daemon: Daemon, job: str, progress: Progress) -> tuple[str, str]:
    """The job's result and its last phase."""
    while (ended := daemon.ended(job)) is None:
        progress.show(daemon.job(job))
        try:
            async with asyncio.timeout(progress.tick):
                await daemon.news()
        except TimeoutError:
            continue
    return ended


async def _cancel(daemon: Daemon, job: str) -> None:
    try:
        await daemon.cancel(job)
    except LlmuxError as error:
        # It may have ended in this very moment.
        if daemon.ended(job) is None:
            print(f"llmuxctl: {error}", file=sys.stderr)
