# SPDX-License-Identifier: MIT
"""llmuxctl as a process: with pipes, as in a script, or at a terminal, as for a person."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
import termios
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from .private_bus import ROOT

COMMAND = (sys.executable, "-P", "-m", "llmuxd.ctl")


@dataclass(frozen=True)
class Done:
    """What came of it."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def begun(*words: str, **env: str) -> asyncio.subprocess.Process:
    """It runs, with pipes."""
    return await asyncio.create_subprocess_exec(
        *COMMAND, *words, env=_environment() | env, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def llmuxctl(*words: str, **env: str) -> Done:
    """Run it to its end."""
    process = await begun(*words, **env)
    out, err = await process.communicate()
    assert process.returncode is not None
    assert "Traceback" not in err.decode(), err.decode()
    return Done(process.returncode, out.decode(), err.decode())


class Terminal:
    """A terminal of 100 columns and 30 lines, and what runs at it."""

    def __init__(self, process: asyncio.subprocess.Process, fd: int):
        self.process = process
        self.text = ""
        self._fd = fd
        self._more = asyncio.Event()
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._read)

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    async def shows(self, words: str) -> str:
        """Wait until this was written since the last time; what came up to then is forgotten."""
        while words not in self.text:
            assert self.process.returncode is None or not self._more.is_set(), self.text
            self._more.clear()
            await self._more.wait()
        seen, _, self.text = self.text.partition(words)
        return seen + words

    def modes(self) -> list[Any]:
        """How the terminal is set."""
        return termios.tcgetattr(self._fd)

    async def ends(self) -> int:
        """Its exit status; what it still wrote is in `text`."""
        status = await self.process.wait()
        self._read()
        return status

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        os.close(self._fd)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while read := os.read(self._fd, 65536):
                self.text += read.decode()
        self._more.set()


@contextlib.asynccontextmanager
async def a_terminal(*argv: str, **env: str) -> AsyncIterator[Terminal]:
    """A command with a terminal of its own, so that Ctrl-C typed there is a SIGINT for it."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (30, 100))
    process = await asyncio.create_subprocess_exec(
        *argv, env=_environment() | {"TERM": "xterm"} | env,
        stdin=theirs, stdout=theirs, stderr=theirs,
        # A session of its own, whose terminal this is.
        preexec_fn=lambda: _take_terminal(theirs),
    )  # fmt: skip
    os.close(theirs)
    terminal = Terminal(process, ours)
    try:
        yield terminal
    finally:
        await terminal.close()


@contextlib.asynccontextmanager
async def at_a_terminal(*words: str, **env: str) -> AsyncIterator[Terminal]:
    """llmuxctl with a terminal."""
    async with a_terminal(*COMMAND, *words, **env) as terminal:
        yield terminal


def _take_terminal(fd: int) -> None:
    import fcntl

    os.setsid()
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {
        "PYTHONPATH": str(ROOT), "TERM": "dumb",
    }  # fmt: skip
