# SPDX-License-Identifier: MIT
"""The process that calls PID 1 for llmuxd, and the wait for its answers; see pid1.py."""

import asyncio
import contextlib
import json
import sys
import time

from .errors import SystemdUnreachable, UnitRefused

# A call is a round trip to PID 1; daemon-reload on a large host takes it seconds.
CALL_TIMEOUT = 60.0
# PID 1 executes itself anew in a second or two; nothing tells when it is on the bus again.
AWAY_LIMIT = 30.0
AWAY_PAUSE = 0.1
# One line lists all models' units, at up to 256 bytes each.
REPLY_LIMIT = 16 << 20


class Away(EOFError):
    """PID 1 is not on the bus at the moment."""


class Caller:
    """The process that calls PID 1; started when needed, again when it died."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def call(self, **request: str) -> object:
        """One request, one answer. A lost process is tried again once: the calls are idempotent."""
        async with self._turn:
            try:
                return await self._ask_when_there(request)
            except (OSError, EOFError, TimeoutError):
                await self._end()
            try:
                return await self._ask_when_there(request)
            except (OSError, EOFError, TimeoutError) as error:
                await self._end()
                why = str(error) or "no reply"
                raise SystemdUnreachable(f"systemd does not answer: {why}") from None
            except asyncio.CancelledError:
                await self._end()
                raise

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end()

    async def _ask_when_there(self, request: dict[str, str]) -> object:
        """Wait for a PID 1 that executes itself anew and is not on the bus meanwhile."""
        end = time.monotonic() + AWAY_LIMIT
        while True:
            try:
                return await self._ask(request)
            except Away:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(AWAY_PAUSE)

    async def _ask(self, request: dict[str, str]) -> object:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "llmuxd.pid1",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                limit=REPLY_LIMIT,
            )  # fmt: skip
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            line = await asyncio.wait_for(process.stdout.readline(), CALL_TIMEOUT)
        except asyncio.CancelledError:
            # Its answer would be taken for the next call's.
            await self._end()
            raise
        if not line:
            raise EOFError("the caller process ended")
        reply = json.loads(line)
        if "away" in reply:
            raise Away(reply["away"])
        if "error" in reply:
            raise UnitRefused(f"systemd refused {request['method']}: {reply['error']}")
        return reply["value"]

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
        if process.stdin is not None:
            # What could not be written any more is of no interest.
            process.stdin.close()
            with contextlib.suppress(OSError):
                await process.stdin.wait_closed()
