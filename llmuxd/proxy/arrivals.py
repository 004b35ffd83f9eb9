# SPDX-License-Identifier: MIT
"""How the models that serve came up, for those who waited for it."""

import asyncio
from dataclasses import dataclass

from multidict import CIMultiDict

from ..costs import Cost
from ..metrics import Visit
from ..switcher import Switcher

# Less is no wait: the model served.
_WAITED = 0.001

_CAME = (Cost.COLD, Cost.RESTORE, Cost.RESUME)


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

    def tell(self, visit: Visit, headers: CIMultiDict[str]) -> None:
        """Put into an answer's headers what its request waited for."""
        headers["X-LLMux-Model"] = _latin(visit.model)
        if visit.waited < _WAITED:
            return
        arrival = self._of.get(visit.model)
        switch = 0.0
        if arrival is not None and arrival.at >= visit.queued:
            headers["X-LLMux-Activation"] = arrival.way.value
            switch = min(arrival.seconds, visit.waited)
        headers["X-LLMux-Queue-Seconds"] = f"{visit.waited - switch:.3f}"
        headers["X-LLMux-Switch-Seconds"] = f"{switch:.3f}"

    def _learnt(self, model: str, cost: Cost, seconds: float) -> None:
        if cost in _CAME:
            self.last_at = asyncio.get_running_loop().time()
            self._of[model] = _Arrival(cost, seconds, self.last_at)


def _latin(name: str) -> str:
    # A header has no other letters; a name may.
    return name if name.isascii() else name.encode("latin-1", "replace").decode("latin-1")
