# SPDX-License-Identifier: MIT
"""llmuxctl jobs and cancel: what was asked for and is not done yet."""

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

from ..errors import LlmuxError
from . import table
from .daemon import Daemon
from .exits import Exit
from .models import print_json

HEADER = ("JOB", "KIND", "MODEL", "SECONDS", "PROGRESS", "PHASE")


async def show(arguments: argparse.Namespace) -> int:
    """A line for each job that runs."""
    async with Daemon(arguments.host) as daemon:
        jobs = (await daemon.objects()).jobs()
    if arguments.json:
        print_json([{"Job": path, **job} for path, job in jobs.items()])
    elif jobs:
        print("\n".join(lines(jobs)))
    else:
        print("no jobs")
    return Exit.DONE


def lines(jobs: Mapping[str, Mapping[str, Any]], room: int = sys.maxsize) -> list[str]:
    """The table of the jobs; `room`: how many characters of a line are shown."""
    rows = [
        (
            path.rpartition("/")[2], job["Kind"], job["Model"],
            f"{max(time.time() - job['Started'], 0.0):.1f}",
            f"{job['Progress']} %" if job["Progress"] else "-", job["Phase"],
        )
        for path, job in jobs.items()
    ]  # fmt: skip
    return table.lines(HEADER, rows, room=room)


async def cancel(arguments: argparse.Namespace) -> int:
    """Have each of these jobs give up, and wait until it is gone."""
    worst, results = Exit.DONE, []
    async with Daemon(arguments.host) as daemon:
        await daemon.listen()
        running = (await daemon.objects()).jobs()
        for number in arguments.job:
            path = f"/Job/{number}"
            if path not in running:
                print(f"llmuxctl: there is no job {number} ('llmuxctl jobs' lists them)",
                      file=sys.stderr)  # fmt: skip
                worst = Exit.FAILED
                continue
            results.append({"job": path, "result": await _cancel(daemon, path)})
    if arguments.json:
        print_json(results)
    else:
        for each in results:
            print(f"job {each['job'].rpartition('/')[2]}: {each['result']}")
    return worst


async def _cancel(daemon: Daemon, path: str) -> str:
    try:
        await daemon.cancel(path)
    except LlmuxError:
        if daemon.ended(path) is None:
            raise
    while (ended := daemon.ended(path)) is None:
        await daemon.news()
    return ended[0]
