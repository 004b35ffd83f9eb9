# SPDX-License-Identifier: MIT
"""llmuxd as a process, its notifications and its log in hand."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from .private_bus import ROOT


@dataclass
class Daemon:
    """A running llmuxd and what it says."""

    process: asyncio.subprocess.Process
    config: Path
    port: int
    notified: socket.socket
    heard: list[str] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)
    _reader: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin(self) -> None:
        """Read what it notifies and logs."""
        asyncio.get_running_loop().add_reader(self.notified, self._on_notify)
        self._reader = asyncio.create_task(self._read_journal())

    async def notify(self, begin: str, count: int = 1) -> str:
        """Wait until lines that begin so came `count` times; the last."""
        while len(found := [line for line in self.heard if line.startswith(begin)]) < count:
            self._more.clear()
            await self._more.wait()
        return found[-1]

    async def logged(self, words: str) -> str:
        """Wait for a line in the journal."""
        while not (found := [line for line in self.journal if words in line]):
            self._more.clear()
            await self._more.wait()
        return found[-1]

    async def end(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        assert self._reader is not None
        await self._reader
        asyncio.get_running_loop().remove_reader(self.notified)

    def _on_notify(self) -> None:
        self.heard += self.notified.recv(65536).decode().splitlines()
        self._more.set()

    async def _read_journal(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.journal.append(line.decode().rstrip())
            self._more.set()
        self._more.set()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def a_daemon(config: Path, directory: Path) -> AsyncIterator[Daemon]:
    """A llmuxd that was begun; it is ready once it says so."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notified:
        address = directory / "notify"
        notified.bind(str(address))
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llmuxd", "-c", str(config), "-p", str(port), cwd=ROOT,
            env=os.environ | {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "200000"},
            stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        daemon = Daemon(process, config, port, notified)
        daemon.begin()
        try:
            yield daemon
        finally:
            await daemon.close()
