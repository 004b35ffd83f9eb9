# SPDX-License-Identifier: MIT
"""GET /health: whether models can be brought to serve, not only whether llmuxd runs.

A load balancer takes the host out on it, so one model that does not start is not enough: the
others serve. It is red where systemd is not heard, where two models or more kept failing since
the last that came, and where one did and nothing serves at all.
"""

import asyncio
from collections.abc import Iterator

from ..costs import Cost
from ..state import State
from ..switcher import Switcher

_CAME = (Cost.COLD, Cost.RESTORE, Cost.RESUME)


class Health:
    """Hears which models come."""

    def __init__(self, switcher: Switcher):
        self._switcher = switcher
        self._came_at = 0.0
        switcher.learnt.append(self._learnt)

    def problems(self) -> list[str]:
        """Why switching is broken, a line each; empty where it is not."""
        found = [] if self._switcher.attached else ["there is no connection to systemd"]
        failing = list(self._failing())
        if len(failing) > 1 or (failing and not self._serves()):
            found += failing
        return found

    def _failing(self) -> Iterator[str]:
        for name in self._switcher.names():
            model = self._switcher.model(name)
            if model.failures > 1 and model.failed_at > self._came_at:
                yield f"{name!r} keeps failing: {model.last_error}"

    def _serves(self) -> bool:
        return any(self._switcher.state(n) is State.SERVING for n in self._switcher.names())

    def _learnt(self, model: str, cost: Cost, seconds: float) -> None:
        if cost in _CAME:
            self._came_at = asyncio.get_running_loop().time()
