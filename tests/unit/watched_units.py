# SPDX-License-Identifier: MIT
"""Fake units that go on when llmuxd dies, refuse what systemd refuses, and tell of each verb."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from llmuxd.config import Config
from llmuxd.errors import UnitRefused
from llmuxd.model.activation import Activation, is_parked, take_leave_order
from llmuxd.model.parking import Parked

from .fake_units import DOWN, FAILED, FakeUnits


class WatchedUnits(FakeUnits):
    """`told` hears of each verb as it begins, `started` how each start ended."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.told: Callable[[str, str], None] = lambda verb, name: None
        self.started: Callable[[str, bool], None] = lambda name, good: None
        self.gpus: dict[str, tuple[int, ...]] = {}
        # When one came to its GPU without the switcher's doing.
        self.strangers: dict[str, float] = {}
        self._work: dict[str, asyncio.Task[Any]] = {}

    async def start(self, name: str) -> str:
        self.told("start", name)
        result = await self._to_its_end(name, self._start(name))
        self.started(name, result == "done")
        return str(result)

    async def stop(self, name: str) -> str:
        self.told("stop", name)
        return str(await self._to_its_end(name, self._stop(name)))

    async def reload(self, name: str) -> str:
        self.told("reload", name)
        return str(await self._to_its_end(name, self._reload(name)))

    # By hand, or by itself

    def kill(self, name: str) -> None:
        """Its server dies."""
        if self.status(name).up:
            self.die(name, FAILED)

    async def start_by_hand(self, name: str) -> None:
        """`systemctl start`; of one that is poised it is the same job as llmuxd's."""
        if name not in self.poised and self.status(name).down and name in self.config.models:
            self.strangers[name] = asyncio.get_running_loop().time()
            await self._to_its_end(name, self._start(name))

    async def stop_by_hand(self, name: str) -> None:
        """`systemctl stop`: with a checkpoint, as no order says anything else."""
        if self.status(name).up:
            if is_parked(name):
                # It may have to come back to its GPU to be written to disk.
                self.strangers[name] = asyncio.get_running_loop().time()
            await self._to_its_end(name, self._stop(name))

    async def reload_by_hand(self, name: str) -> None:
        """`systemctl reload`, which wakes a parked one."""
        if self.status(name).up and is_parked(name):
            self.strangers[name] = asyncio.get_running_loop().time()
            await self._to_its_end(name, self._reload(name))

    def gpus_of(self, name: str) -> tuple[int, ...]:
        return self.gpus.get(name, (0,))

    def holders(self) -> list[str]:
        """The models that occupy their GPUs now."""
        return [n for n in self.running() if not (self.status(n).up and is_parked(n))]

    async def _start(self, name: str) -> str:
        if not self.status(name).down:
            return "done"
        if name in self.config.models:
            self.gpus[name] = self.config.models[name].gpus
        return await super().start(name)

    async def _stop(self, name: str) -> str:
        if name not in self.config.models:
            self._set(name, replace(self.status(name), active="deactivating"))
            await self._verb("stop", name)
            take_leave_order(name)
            Activation.forget(name)
            Parked.forget(name)
            self._set(name, DOWN)
            return "done"
        return await super().stop(name)

    async def _reload(self, name: str) -> str:
        before = self.status(name)
        if not before.up:
            raise UnitRefused("Job type reload is not applicable for the unit")
        self._set(name, replace(before, active="reloading"))
        result = await super().reload(name)
        if self.status(name).up:
            self._set(name, before)
        else:
            # It died meanwhile, and its clean-up comes last.
            Parked.forget(name)
        return result

    async def _to_its_end(self, name: str, work: Coroutine[Any, Any, Any]) -> Any:
        """One at a time for each unit, to its end, whoever asked for it and is gone by then."""
        before = self._work.get(name)
        if before is not None and not before.done():
            await asyncio.wait([before])
        task = asyncio.create_task(work)
        self._work[name] = task
        return await asyncio.shield(task)

    async def close(self) -> None:
        for task in self._work.values():
            if not task.done():
                await asyncio.wait([task])
