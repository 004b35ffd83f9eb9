# SPDX-License-Identifier: MIT
"""Ctrl-C while a job runs: the job is llmuxd's and would go on, so its fate is asked for."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from enum import Enum, auto
from typing import Any


class Choice(Enum):
    """What is to become of the job."""

    CANCEL = auto()
    GO_ON = auto()
    LEAVE = auto()


@contextlib.contextmanager
def caught() -> Iterator[asyncio.Event]:
    """An event that Ctrl-C sets, instead of ending the program."""
    pressed = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, pressed.set)
    try:
        yield pressed
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def first(waiting: asyncio.Task[Any], pressed: asyncio.Event) -> bool:
    """Whether `waiting` was done before Ctrl-C was pressed."""
    press = asyncio.create_task(pressed.wait())
    await asyncio.wait((waiting, press), return_when=asyncio.FIRST_COMPLETED)
    press.cancel()
    pressed.clear()
    return waiting.done()


async def ask(question: str, waiting: asyncio.Task[Any], pressed: asyncio.Event) -> Choice:
    """Ask on the terminal until `waiting` is done; a second Ctrl-C leaves the job alone.

    Where nobody can be asked, Ctrl-C cancels.
    """
    if not sys.stdin.isatty():
        return Choice.CANCEL
    print(f"\n{question}", end="", file=sys.stderr, flush=True)
    answer = asyncio.create_task(_line())
    press = asyncio.create_task(pressed.wait())
    await asyncio.wait((answer, waiting, press), return_when=asyncio.FIRST_COMPLETED)
    answer.cancel()
    press.cancel()
    if press.done():
        pressed.clear()
    if answer.done():
        return Choice.CANCEL if answer.result().strip().lower() in ("y", "yes") else Choice.GO_ON
    print(file=sys.stderr)
    return Choice.GO_ON if waiting.done() else Choice.LEAVE


async def _line() -> str:
    """A line from standard input; what is at its end is read as an empty one."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    fd = sys.stdin.fileno()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
        # A terminal gives a whole line, and never more than one.
        return os.read(fd, 4096).decode(errors="replace")
    finally:
        loop.remove_reader(fd)
