# SPDX-License-Identifier: MIT
"""Models that come in before anybody asks for them, one after the other."""

import asyncio
import logging

from ..state import State
from .deciding import Decider
from .fleet import Fleet
from .operators import Operators

log = logging.getLogger(__name__)


class Preloading:
    """What the configuration says with `preload`; done once, when llmuxd has started."""

    def __init__(self, fleet: Fleet, operators: Operators, decider: Decider):
        self._fleet = fleet
        self._operators = operators
        self._decider = decider
        self._begun = False

    async def run(self) -> None:
        """Bring each in for which there is room; the second time there is nothing to do."""
        if self._begun:
            return
        self._begun = True
        for name in [model.name for model in self._fleet.config.models.values() if model.preload]:
            model = self._fleet.models.get(name)
            if model is None or self._fleet.state(model) in (State.SERVING, State.STARTING):
                continue
            room = await self._decider.has_room(model)
            if model.removed:
                continue
            if not room:
                log.info("%s is not preloaded: its GPU is taken", name)
                continue
            job = self._operators.preload(name)
            if job.task is not None:
                await asyncio.wait([job.task])
