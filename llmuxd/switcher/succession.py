# SPDX-License-Identifier: MIT
"""Who is to leave once another one that came in beside it serves.

Kept in /run/llmux from before the other one begins to come until the one has left, or need not: a
llmuxd that is killed in between is followed by one that finds it there.
"""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import files
from ..model.activation import is_moved, is_parked
from .tasks import Tasks


class Succession:
    """The names of those who leave, each with those of whom one has to serve by then."""

    def __init__(self, tasks: Tasks):
        self._newcomers: dict[str, tuple[str, ...]] = {}
        self._written: dict[str, tuple[str, ...]] | None = None
        self._tasks = tasks
        self._writing = asyncio.Lock()

    @property
    def pending(self) -> Mapping[str, tuple[str, ...]]:
        """Those who have not left yet."""
        return self._newcomers

    async def load(self) -> None:
        """Take over what a llmuxd left that was killed, for those who come or have come.

        Once: it is this one's own afterwards.
        """
        if self._written is not None:
            return
        self._written = await asyncio.to_thread(_read)
        for leaver, newcomers in self._written.items():
            rest = await asyncio.to_thread(_at_rest, newcomers)
            self.note(leaver, [name for name in newcomers if name not in rest])

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
            if noted != (self._written or {}):
                await asyncio.to_thread(_write, noted)
                self._written = noted


def _read() -> dict[str, tuple[str, ...]]:
    raw = files.read_json(_path()) or {}
    return {leaver: files.texts(newcomers) for leaver, newcomers in raw.items()}


def _at_rest(names: Iterable[str]) -> list[str]:
    """Those that are parked, and that nobody wakes."""
    return [name for name in names if not is_moved(name) and is_parked(name)]


def _write(newcomers: Mapping[str, tuple[str, ...]]) -> None:
    if newcomers:
        files.write_json(_path(), newcomers)
    else:
        _path().unlink(missing_ok=True)


def _path() -> Path:
    return files.runtime_root() / "succession.json"
