# SPDX-License-Identifier: MIT
"""Measures while somebody listens, and tells what changed.

A client gets a reading, as one line, at once, whenever one differs from the last, and for each
line that it sends: that one was measured after the line came. Nothing is in the lines.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable

from . import holders
from .nvml import Nvml, NvmlError
from .reading import GpuMemory, Holder, Reading

log = logging.getLogger("llmux-gpus")

# Seconds between two looks for what other programs do; llmuxd asks by itself where it matters.
PERIOD = 1.0
# A client that reads nothing for so many bytes is let go.
BACKLOG = 1 << 20


class Meter:
    """Listens on one socket. `tell` is given a line about the last reading when it changed."""

    def __init__(self, tell: Callable[[str], None], library: str | None = None):
        self._tell = tell
        self._library = library
        self._nvml: Nvml | None = None
        self._last: Reading | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._asking: set[asyncio.StreamWriter] = set()
        self._wake = asyncio.Event()

    async def serve(self, listening: socket.socket) -> None:
        """Until cancelled. Measuring blocks, for milliseconds: nothing else is done here."""
        # Not start_unix_server: from Python 3.13 on that removes the socket's file, systemd's, when
        # it ends.
        server = await asyncio.start_server(self._client, sock=listening)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), PERIOD if self._clients else None)
                self._wake.clear()
                self._round()
        finally:
            server.close()
            for client in self._clients:
                client.transport.abort()
            self._close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            self._ask(writer)
            while await reader.readline():
                self._ask(writer)
        except (OSError, ValueError):
            # It is gone, or sends what is no line.
            pass
        finally:
            self._clients.discard(writer)
            self._asking.discard(writer)
            writer.transport.abort()
            self._wake.set()

    def _ask(self, writer: asyncio.StreamWriter) -> None:
        self._asking.add(writer)
        self._wake.set()

    def _round(self) -> None:
        if not self._clients:
            # Nobody is there to see it, and an open driver cannot be exchanged.
            self._close()
            return
        asking, self._asking = self._asking, set()
        reading = self._measure()
        changed = not reading.tells_as(self._last)
        if changed:
            self._tell(_summary(reading))
            if reading.error:
                log.error("%s", reading.error)
        self._last = reading
        line = reading.line()
        for client in self._clients if changed else asking:
            client.write(line)
            if client.transport.get_write_buffer_size() > BACKLOG:
                client.transport.abort()

    def _measure(self) -> Reading:
        at = time.monotonic()
        try:
            if self._nvml is None:
                self._nvml = Nvml(self._library)
            return Reading(at, _look(self._nvml))
        except NvmlError as error:
            # A driver that was exchanged answers only who initializes anew.
            self._close()
            return Reading(at, error=str(error))

    def _close(self) -> None:
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            nvml.close()


def _look(nvml: Nvml) -> tuple[GpuMemory, ...]:
    """All GPUs but those that do not answer: one that fell off the bus must not hide the others."""
    gpus, lost = [], []
    for number in range(nvml.count()):
        try:
            gpus.append(_gpu(nvml, number))
        except NvmlError as error:
            lost.append(error)
    if lost and not gpus:
        raise lost[0]
    return tuple(gpus)


def _gpu(nvml: Nvml, number: int) -> GpuMemory:
    memory = nvml.memory(number)
    found = [
        Holder(pid, holders.name(pid), holders.model(pid), size)
        for pid, size in sorted(nvml.processes(number).items())
    ]
    total = memory.total - memory.reserved
    return GpuMemory(number, nvml.name(number), total, memory.used, tuple(found))


def _summary(reading: Reading) -> str:
    if reading.error:
        return reading.error
    gpus = [f"GPU {g.number}: {g.used >> 20} of {g.total >> 20} MiB used" for g in reading.gpus]
    return ", ".join(gpus) or "there is no GPU"
