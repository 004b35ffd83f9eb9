# SPDX-License-Identifier: MIT
"""llmuxctl top: models and jobs as they are now, drawn anew with every signal of llmuxd.

llmuxd is asked once, at the begin. Between its signals only the clock goes on.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import sys
import time

from . import jobs, models, table, terminal
from .daemon import CallFailed, Daemon
from .exits import Exit
from .mirror import Mirror

# Ages and seconds are shown anew so often.
_CLOCK = 1.0
# A crowd of requests is a crowd of signals; nobody reads faster.
_PAUSE = 0.05
_ESCAPE = "\x1b"


async def top(arguments: argparse.Namespace) -> int:
    """Until q, Ctrl-C or the end of llmuxd; with --json a line for each change."""
    if not arguments.json and not (sys.stdin.isatty() and terminal.is_one(sys.stdout)):
        raise CallFailed("top needs a terminal", "'llmuxctl status', or 'llmuxctl top --json'")
    async with Daemon(arguments.host) as daemon:
        await daemon.listen()
        mirror = await daemon.objects()
        if arguments.json:
            await _print(daemon, mirror)
        with terminal.other_screen(sys.stdout), terminal.keys_at_once():
            await _show(daemon, mirror, arguments.host or platform.node())
    return Exit.DONE


async def _print(daemon: Daemon, mirror: Mirror) -> None:
    """A JSON document a line, with each change."""
    told = ""
    while True:
        found = {
            "manager": mirror.manager(),
            "models": mirror.models(),
            "jobs": [{"Job": path, **job} for path, job in mirror.jobs().items()],
        }
        line = json.dumps(found, ensure_ascii=False)
        if line != told:
            print(line, flush=True)
            told = line
        await daemon.news()


async def _show(daemon: Daemon, mirror: Mirror, host: str) -> None:
    over, resized = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def key() -> None:
        pressed = os.read(sys.stdin.fileno(), 64).decode(errors="replace")
        # An end of file too: the terminal is gone.
        if not pressed or pressed[0] in ("q", "Q", _ESCAPE):
            over.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, over.set)
    loop.add_signal_handler(signal.SIGWINCH, resized.set)
    loop.add_reader(sys.stdin.fileno(), key)
    ends = asyncio.create_task(over.wait())
    try:
        while not over.is_set():
            terminal.draw(sys.stdout, screen(mirror, host, *terminal.size()))
            resized.clear()
            await _something(daemon, ends, resized)
    finally:
        ends.cancel()
        loop.remove_reader(sys.stdin.fileno())


async def _something(daemon: Daemon, ends: asyncio.Task[bool], resized: asyncio.Event) -> None:
    """Wait for news, another size, the clock, or the end."""
    news, size = asyncio.create_task(daemon.news()), asyncio.create_task(resized.wait())
    await asyncio.wait((news, size, ends), timeout=_CLOCK, return_when=asyncio.FIRST_COMPLETED)
    size.cancel()
    news.cancel()
    if news.done():
        news.result()
        await asyncio.wait((ends,), timeout=_PAUSE)
    with contextlib.suppress(asyncio.CancelledError):
        await news


def _gpu(number: int, name: str, total: int, used: int, foreign: int) -> str:
    """A GPU's memory, as a line."""
    others = f", {table.size(foreign)} of it not by models" if foreign else ""
    return (
        f"GPU {number}  {table.bar(used / total if total else 0.0)}"
        f"  {table.size(used)} of {table.size(total)}{others}  {name}"
    )


def screen(mirror: Mirror, host: str, columns: int, lines: int) -> list[str]:
    """What is shown, in so many columns and lines."""
    manager, running = mirror.manager(), mirror.jobs()
    head = (
        f"llmuxd {manager.get('Version', '')} on {host}, {time.strftime('%H:%M:%S')}:"
        f" {len(mirror.models())} models, {len(manager.get('ActiveModels', []))} serving,"
        f" {manager.get('QueueLength', 0)} requests wait   (q: quit)"
    )
    shown = [terminal.paint(head[:columns], terminal.Style.BOLD), ""]
    if gpus := manager.get("GPUs"):
        shown += [*(_gpu(*gpu)[:columns] for gpu in gpus), ""]
    colour = terminal.has_colour(sys.stdout)
    shown += models.lines(mirror.models(), colour=colour, room=columns)
    if running:
        shown += ["", *jobs.lines(running, room=columns)]
    # The last line stays free: a line feed in it would scroll.
    return shown[: lines - 1]
