# SPDX-License-Identifier: MIT
"""What is on the GPUs, as llmux-gpus.service measures it: llmuxd itself can reach no device."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping

from .events import Event, about
from .meter.reading import BadReading, GpuMemory, Reading, parse, socket_path
from .policy import Gpu

log = logging.getLogger(__name__)

# Seconds until a socket that did not answer is tried again. Where there is no driver there is no
# socket: systemd looks for one when it starts llmuxd.
RETRY = 10.0
# A measurement takes milliseconds, with persistence mode off the driver's start as well.
LIMIT = 5.0
# Requests that need no measurement wait for the first one too when llmuxd starts.
FIRST_LIMIT = 1.0
# 4096 processes, at up to 500 bytes each.
LINE_LIMIT = 2 << 20


class Gpus:
    """The last reading. `changed` is called when there is another one, or none any more."""

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._reading: Reading | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._away = False
        self._news = asyncio.Condition()

    @property
    def measured(self) -> tuple[GpuMemory, ...]:
        """All GPUs as they were last seen; empty where nothing is known of any."""
        return self._reading.gpus if self._reading is not None else ()

    def read(self) -> dict[int, Gpu]:
        """The same for the policy, by number."""
        return {gpu.number: _for_policy(gpu) for gpu in self.measured}

    def held(self) -> dict[str, dict[int, int]]:
        """The bytes that each model holds, by GPU; a model without any is not in it."""
        held: dict[str, dict[int, int]] = {}
        for gpu in self.measured:
            for model, size in gpu.held.items():
                held.setdefault(model, {})[gpu.number] = size
        return held

    async def measure(self) -> Mapping[int, Gpu]:
        """`read`, of a measurement that begins after this call; `run` must be running.

        Empty where there is none to be had: what is not known now must not be decided upon.
        """
        since = time.monotonic()
        if self._writer is not None:
            self._writer.write(b"\n")
        # A meter that was restarted meanwhile measures for who connects.
        try:
            async with asyncio.timeout(LIMIT), self._news:
                await self._news.wait_for(lambda: self._at >= since or self._away)
        except TimeoutError:
            # Nobody waits for it again before it is heard.
            self._away = True
        return self.read() if self._at >= since else {}

    async def first(self) -> None:
        """Until there is a reading, or it is known that there is none, but for FIRST_LIMIT at most.

        `run` must be running.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LIMIT), self._news:
                await self._news.wait_for(lambda: self._reading is not None or self._away)

    async def run(self) -> None:
        """Keep the reading true, until cancelled."""
        while True:
            try:
                await self._listen()
            except (OSError, ValueError, BadReading) as error:
                log.debug("GPU memory is not measured: %s", error)
                await self._take(None)
                await asyncio.sleep(RETRY)

    @property
    def _at(self) -> float:
        return self._reading.at if self._reading is not None else -math.inf

    async def _listen(self) -> None:
        """Until the meter ends; BadReading where it did so without a word."""
        reader, writer = await asyncio.open_unix_connection(socket_path(), limit=LINE_LIMIT)
        self._writer = writer
        heard = False
        try:
            while line := await reader.readline():
                await self._take(parse(line))
                heard = True
        finally:
            self._writer = None
            writer.close()
        if not heard:
            raise BadReading("the meter ended at once")

    async def _take(self, reading: Reading | None) -> None:
        before, self._reading = self._reading, reading
        self._away = reading is None
        if reading is not None and reading.error and not reading.tells_as(before):
            log.warning("GPU memory cannot be measured: %s", reading.error,
                        extra=about(Event.GPUS_UNMEASURED))  # fmt: skip
        async with self._news:
            self._news.notify_all()
        if reading is None or not reading.tells_as(before):
            self.changed()


def _for_policy(gpu: GpuMemory) -> Gpu:
    others = [
        (f"{holder.name or 'a process'} (PID {holder.pid})", holder.bytes)
        for holder in gpu.holders
        if holder.model is None and holder.bytes
    ]
    return Gpu(
        total=gpu.total,
        foreign=gpu.foreign,
        hidden=gpu.hidden,
        held=gpu.held,
        others=tuple(sorted(others, key=lambda other: -other[1])),
    )
