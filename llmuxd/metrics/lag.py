# SPDX-License-Identifier: MIT
"""How late the event loop is: a timer that looks when it is called."""

import asyncio

from prometheus_client import Histogram

# Seconds between two looks: four a second cost nothing, and see each stall of more than that.
INTERVAL = 0.25


class Lag:
    """Observes until it is stopped."""

    def __init__(self, histogram: Histogram):
        self._histogram = histogram
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look from now on."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(INTERVAL, self._look, loop, loop.time() + INTERVAL)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._histogram.observe(max(loop.time() - due, 0.0))
        self.start()
