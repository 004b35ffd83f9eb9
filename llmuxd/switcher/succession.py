# SPDX-License-Identifier: MIT
"""Who is to leave once another one that came in beside it serves.

Kept in /run/llmux from before the other one begins to come until the one has left, or need not: a
llmuxd that is killed in between is followed by one that finds it there.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import files
from .models import now
from .tasks import Tasks

log = logging.getLogger(__name__)

# Seconds until a unit's helper has begun with what was asked of it before it began to listen.
SETTLING = 15.0


class Succession:
    """The names of those who leave, each with those of whom one has to serve by then.

    `settled_at`: by `now`, when whatever was asked for before llmuxd was killed has begun.
    """

    def __init__(self, tasks: Tasks):
        self._newcomers: dict[str, tuple[str, ...]] = {}
        self._written: dict[str, tuple[str, ...]] | None = None
        self.settled_at = 0.0
        self._tasks = tasks
        self._writing = asyncio.Lock()

    @property
    def pending(self) -> Mapping[str, tuple[str, ...]]:
        """Those who have not left yet."""
        return self._newcomers

    async def load(self) -> None:
        """Take over what a llmuxd left that was killed. Once: it is this one's own afterwards."""
        if self._written is None:
            self._written = await asyncio.to_thread(_read)
            self._newcomers = self._written | self._newcomers
            self.settled_at = now() + SETTLING

    def note(self, leaver: str, newcomer: str) -> None:
        """Have it known; it is once `written` has returned."""
        self._newcomers[leaver] = (*self._newcomers.get(leaver, ()), newcomer)

    def forget(self, leaver: str, newcomers: Iterable[str] | None = None) -> None:
        """It has left, or need not leave for those newcomers (None: for any)."""
        before = self._newcomers.pop(leaver, ())
        gone = set(before if newcomers is None else newcomers)
        if left := tuple(name for name in before if name not in gone):
            self._newcomers[leaver] = left
        if left != before:
            self._tasks.spawn(self.written())

    async def written(self) -> None:
        """Whatever was noted is in the file."""
        async with self._writing:
            noted = dict(self._newcomers)
            if noted != (self._written or {}):
                try:
                    await asyncio.to_thread(_write, noted)
                except OSError as error:
                    # Nothing is lost unless llmuxd is killed in that very moment.
                    log.warning("%s: %s", _path(), error.strerror)
                    return
                self._written = noted


def _read() -> dict[str, tuple[str, ...]]:
    raw = files.read_json(_path()) or {}
    return {leaver: files.texts(newcomers) for leaver, newcomers in raw.items()}


def _write(newcomers: Mapping[str, tuple[str, ...]]) -> None:
    if newcomers:
        files.write_json(_path(), newcomers)
    else:
        _path().unlink(missing_ok=True)


def _path() -> Path:
    return files.runtime_root() / "succession.json"
