# SPDX-License-Identifier: MIT
"""How the models that serve came up, for those who waited for it."""

import asyncio
from dataclasses import dataclass

from ..costs import Cost
from ..metrics import Visit
from ..switcher import Switcher
from .headers import Headers

# Less is no wait: the model served.
_WAITED = 0.001

_CAME = (Cost.COLD, Cost.RESTORE, Cost.RESUME)


MODEL_HEADER = "X-LLMux-Model"


def in_latin(name: str) -> str:
    """The name as a header's value, which has no other letters; a name may."""
    return name.encode("latin-1", "replace").decode("latin-1")


@dataclass(frozen=True, slots=True)
class _Arrival:
    way: Cost
    seconds: float
    at: float


class Arrivals:
    """Hears of each; `last_at` is the loop's time of the last one."""

    def __init__(self, switcher: Switcher):
        self.last_at = 0.0
        self._of: dict[str, _Arrival] = {}
        switcher.learnt.append(self._learnt)

    def told(self, visit: Visit) -> Headers:
        """What an answer's headers tell of what its request waited for."""
        headers = [(MODEL_HEADER.encode(), in_latin(visit.model).encode("latin-1"))]
        if visit.waited < _WAITED:
            return headers
        arrival = self._of.get(visit.model)
        switch = 0.0
        if arrival is not None and arrival.at >= visit.queued:
            headers.append((b"X-LLMux-Activation", arrival.way.value.encode()))
            switch = min(arrival.seconds, visit.waited)
        headers.append((b"X-LLMux-Queue-Seconds", b"%.3f" % (visit.waited - switch)))
        headers.append((b"X-LLMux-Switch-Seconds", b"%.3f" % switch))
        return headers

    def _learnt(self, model: str, cost: Cost, seconds: float) -> None:
        if cost in _CAME:
            self.last_at = asyncio.get_running_loop().time()
            self._of[model] = _Arrival(cost, seconds, self.last_at)
