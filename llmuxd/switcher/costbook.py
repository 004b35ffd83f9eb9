# SPDX-License-Identifier: MIT
"""The learnt costs and needs, kept over restarts."""

import asyncio
import logging
from collections.abc import Callable

from .. import files
from ..costs import Cost, Costs
from ..needs import Needs

log = logging.getLogger(__name__)

# Of the file's format; another one is not read, what it said is learnt again.
VERSION = 1
# What is learnt within so many seconds is written together.
DELAY = 5.0


class CostBook:
    """/var/lib/llmux/costs.json; read and written beside the event loop.

    Each of `listeners` is told what was learnt: model, cost, seconds.
    """

    def __init__(self) -> None:
        self.costs = Costs()
        self.needs = Needs()
        self.listeners: list[Callable[[str, Cost, float], None]] = []
        self._path = files.state_root() / "costs.json"
        self._learnt = asyncio.Event()
        self._loaded = False

    def learn(self, model: str, cost: Cost, seconds: float) -> None:
        """It took `seconds` this time."""
        self.costs.learn(model, cost, seconds)
        self._learnt.set()
        for listener in self.listeners:
            listener(model, cost, seconds)

    def learn_need(self, model: str, held: int) -> None:
        """It was seen to hold so many bytes of a GPU."""
        if self.needs.learn(model, held):
            self._learnt.set()

    def forget(self, model: str) -> None:
        """The model is gone, or became another."""
        self.costs.forget(model)
        self.needs.forget(model)
        self._learnt.set()

    async def load(self) -> None:
        """Begin with what is known from earlier; again, it does nothing."""
        if self._loaded:
            return
        raw = await asyncio.to_thread(files.read_json, self._path)
        told = raw if raw and raw.get("version") == VERSION else {}
        models, needs = told.get("models"), told.get("vram")
        if isinstance(models, dict):
            self.costs = Costs.from_json(models)
        if isinstance(needs, dict):
            self.needs = Needs.from_json(needs)
        self._loaded = True

    async def keep(self) -> None:
        """Write whenever something was learnt, until cancelled."""
        while True:
            await self._learnt.wait()
            await asyncio.sleep(DELAY)
            await self.save()

    async def save(self) -> None:
        """Write what was learnt since the last time."""
        if not self._learnt.is_set():
            return
        self._learnt.clear()
        value = {
            "version": VERSION, "models": self.costs.to_json(), "vram": self.needs.to_json(),
        }  # fmt: skip
        try:
            await asyncio.to_thread(files.write_json, self._path, value)
        except OSError as error:
            # They are a help, no more: the next time may find room on the disk.
            log.warning("learnt costs cannot be written to %s: %s", self._path, error)
