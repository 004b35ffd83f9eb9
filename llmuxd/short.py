# SPDX-License-Identifier: MIT
"""Queues that are empty, as a rule: aiohttp has five for each stream, and a deque without anything
in it takes 760 bytes; of a thousand streams that is more than a twentieth of the whole daemon.
"""

from collections import deque
from typing import TypeVar

T = TypeVar("T")

# What aiohttp calls them: those of a body, of a connection to a server, of a client's.
_NAMES = ("_buffer", "_http_chunk_splits", "_messages")


class Short(list[T]):
    """A deque for a few: to take the first of 10,000 moves all others."""

    __slots__ = ()

    def popleft(self) -> T:
        """The first, which is taken out."""
        return self.pop(0)

    def appendleft(self, item: T) -> None:
        """Put this before the first."""
        self.insert(0, item)


def shorten(owner: object) -> None:
    """Let this object of aiohttp's have such queues, with what is in them; where one day it has
    others, those stay."""
    for name in _NAMES:
        queue = getattr(owner, name, None)
        if isinstance(queue, deque):
            setattr(owner, name, Short(queue))
