# SPDX-License-Identifier: MIT
"""Who is to leave once another one that came in beside it serves.

Kept in /run/llmux from before the other one begins to come until the one has left, or need not: a
llmuxd that is killed in between is followed by one that finds it there.
"""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import files
from .tasks import Tasks


class Succession:
    """The names of those who leave, each with those of whom one has to serve by then."""

    def __init__(self, tasks: Tasks):
        self._newcomers: dict[str, tuple[str, ...]] = {}
        self._written: dict[str, tuple[str, ...]] = {}
        self._tasks = tasks
        self._writing = asyncio.Lock()

    @property
    def pending(self) -> Mapping[str, tuple[str, ...]]:
        """Those who have not left yet."""
        return self._newcomers

    async def load(self) -> None:
        """Take over what a llmuxd left that was killed."""
        raw = await asyncio.to_thread(files.read_json, _path()) or {}
        self._newcomers = {name: files.texts(newcomers) for name, newcomers in raw.items()}
        self._written = dict(self._newcomers)

    def note(self, leaver: str, newcomers: Iterable[str]) -> None:
        """Have it known; it is once `written` has returned."""
        self._newcomers[leaver] = tuple(newcomers)

    def forget(self, leaver: str) -> None:
        """It has left, or stays."""
        if self._newcomers.pop(leaver, None) is not None:
            self._tasks.spawn(self.written())

    async def written(self) -> None:
        """Whatever was noted is in the file."""
        async with self._writing:
            noted = dict(self._newcomers)
            if noted != self._written:
                await asyncio.to_thread(_write, noted)
                self._written = noted


def _write(newcomers: Mapping[str, tuple[str, ...]]) -> None:
    if newcomers:
        files.write_json(_path(), newcomers)
    else:
        _path().unlink(missing_ok=True)


def _path() -> Path:
    return files.runtime_root() / "succession.json"
