# SPDX-License-Identifier: MIT
"""GET /health: whether models can be brought to serve, not only whether llmuxd runs.

A load balancer takes the host out on it, so one model that does not start is not enough: the
others serve. It is red where systemd is not heard, where a model does not leave its GPU, where two
models or more kept failing since the last that came, and where one did and nothing serves at all.
"""

from collections.abc import Iterator

from ..state import State
from ..switcher import Switcher
from .arrivals import Arrivals

_OUT = (State.COLD, State.CHECKPOINTED, State.FAILED)


class Health:
    """Knows from the switcher which models do not come, and from `arrivals` when one did."""

    def __init__(self, switcher: Switcher, arrivals: Arrivals):
        self._switcher = switcher
        self._arrivals = arrivals

    def problems(self) -> list[str]:
        """Why switching is broken, a line each; empty where it is not."""
        found = [] if self._switcher.attached else ["there is no connection to systemd"]
        found += self._stuck()
        failing = list(self._failing())
        if len(failing) > 1 or (failing and not self._serves()):
            found += failing
        return found

    def _stuck(self) -> Iterator[str]:
        for name in self._switcher.names():
            model = self._switcher.model(name)
            if model.stuck > 1 and self._switcher.state(name) not in _OUT:
                yield f"{name!r} does not leave: {model.last_error}"

    def _failing(self) -> Iterator[str]:
        for name in self._switcher.names():
            model = self._switcher.model(name)
            if model.failures > 1 and model.failed_at > self._arrivals.last_at:
                yield f"{name!r} keeps failing: {model.last_error}"

    def _serves(self) -> bool:
        return any(self._switcher.state(n) is State.SERVING for n in self._switcher.names())
