# SPDX-License-Identifier: MIT
"""Loggers that load Python's logging once there is something to log.

With what it brings along that takes 10 ms. A model's start would wait for it, and has nothing to
say until podman has restored.
"""

from __future__ import annotations

import _thread
import sys

# Not imported in fact.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from logging import Logger

_lock = _thread.allocate_lock()
_before_first: list[Callable[[], None]] = []


def named(name: str) -> Logger:
    """What logging.getLogger has by that name, as soon as anything of it is used."""
    return _Later(name)  # type: ignore[return-value]


def before_first(set_up: Callable[[], None]) -> None:
    """Have this done before the first line."""
    _before_first.append(set_up)


class _Later:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        if attribute == "debug" and "logging" not in sys.modules:
            # Who wants to see these has logging set up, and so loaded, from the beginning.
            return _say_nothing
        import logging

        with _lock:
            while _before_first:
                _before_first.pop()()
        return getattr(logging.getLogger(self._name), attribute)


def _say_nothing(*_: object, **__: object) -> None:
    pass
