# SPDX-License-Identifier: MIT
"""Queues that are empty, as a rule: aiohttp has five for each stream, and a deque without anything
in it takes 760 bytes; of a thousand streams that is more than a twentieth of the whole daemon.
"""

from typing import TypeVar

from aiohttp import StreamReader

T = TypeVar("T")


class Short(list[T]):
    """A deque for a few."""

    __slots__ = ()

    def popleft(self) -> T:
        """The first, which is taken out."""
        return self.pop(0)

    def appendleft(self, item: T) -> None:
        """Put this before the first."""
        self.insert(0, item)


def shorten(reader: StreamReader) -> None:
    """Let the body have such queues, with what is in them."""
    reader._buffer = Short(reader._buffer)  # type: ignore[assignment]
    if reader._http_chunk_splits is not None:
        reader._http_chunk_splits = Short(reader._http_chunk_splits)  # type: ignore[assignment]
