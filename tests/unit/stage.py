# SPDX-License-Identifier: MIT
"""A switcher that runs over fake units, and clients for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from llmuxd.backend import Backend
from llmuxd.config import ModelConfig
from llmuxd.jobs import Job
from llmuxd.state import State
from llmuxd.switcher import Switcher
from llmuxd.switcher.deciding import Gauge

from .fake_units import FakeUnits, a_config


class Client:
    """One request: waits to be let in, then stays until it is told to end."""

    def __init__(self, stage: "Stage", name: str, priority: int = 0):
        self.name = name
        self.priority = priority
        self.admitted = asyncio.Event()
        self.end = asyncio.Event()
        self.port = 0
        self.backend: Backend | None = None
        self.task = asyncio.create_task(self._run(stage), name=f"client of {name}")

    async def _run(self, stage: "Stage") -> None:
        async with stage.switcher.request(self.name, priority=self.priority) as backend:
            self.port = backend.port
            self.backend = backend
            stage.served.append(self.name)
            self.admitted.set()
            await self.end.wait()

    @property
    def cut(self) -> bool:
        """Whether its connection was closed under it."""
        return self.backend is not None and self.backend.closed

    async def finish(self) -> None:
        """The answer is complete."""
        self.end.set()
        await self.task

    async def leave(self) -> None:
        """The client goes away."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    async def error(self) -> Exception:
        """What it was refused with."""
        try:
            await self.task
        except Exception as error:
            return error
        raise AssertionError("it was served")


class Stage:
    """What a test needs in hand."""

    def __init__(self, *models: ModelConfig, gauge: Gauge | None = None):
        self.config = a_config(*models)
        self.units = FakeUnits(self.config)
        self.switcher = Switcher(self.config, self.units, gauge)
        self.served: list[str] = []
        self.ended: list[Job] = []
        self.loop: asyncio.Task[None] | None = None
        self._clients: list[Client] = []
        self._changed = asyncio.Event()
        self.switcher.listeners.append(self.heard)
        self.hear_jobs()

    def run(self) -> None:
        """It decides from now on, until the stage is closed."""
        self.loop = asyncio.create_task(self.switcher.run())

    async def take_over(self) -> None:
        """The same where units run already."""
        await self.switcher.adopt()
        self.run()

    def hear_jobs(self) -> None:
        """Hear of the jobs' ends, after whoever hears of them already."""
        others = self.switcher.jobs.on_removed

        def removed(job: Job) -> None:
            others(job)
            self.ended.append(job)
            self._changed.set()

        self.switcher.jobs.on_removed = removed

    def heard(self, name: str) -> None:
        """Something of a model changed; another switcher that runs over the units says so too."""
        self._changed.set()

    def client(self, name: str, priority: int = 0) -> Client:
        """Begin a request."""
        client = Client(self, name, priority)
        self._clients.append(client)
        return client

    async def ask(self, name: str) -> None:
        """One short request, from its begin to its end."""
        client = self.client(name)
        client.end.set()
        await client.task

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what is told by an event."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def until_state(self, name: str, state: State) -> None:
        """Wait until the model's state is this."""
        await self.until(lambda: self.switcher.state(name) is state)

    async def until_idle(self) -> None:
        """Wait until no model is on its way."""
        await self.until(lambda: not self.moving())

    def moving(self) -> list[str]:
        """The models that have a transition."""
        names = self.switcher.names()
        return [name for name in names if self.switcher.model(name).transition is not None]

    async def result(self, job: Job) -> str:
        """How the job ended."""
        await self.until(lambda: job in self.ended)
        return str(job.result)

    async def cancel(self, job: Job) -> None:
        """Have it give up, and it is gone."""
        self.switcher.jobs.cancel(job.number)
        assert await self.result(job) == "canceled"

    def serving(self) -> list[str]:
        """The models that serve."""
        names = self.switcher.names()
        return [name for name in names if self.switcher.state(name) is State.SERVING]

    def reload(self, *models: ModelConfig) -> None:
        """As if llmux.yaml had other models now."""
        self.units.config = a_config(*models)
        self.switcher.reload(self.units.config)

    async def settle(self) -> None:
        """Let everything happen that can happen without an event from outside."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def close(self) -> None:
        for client in self._clients:
            client.task.cancel()
        await asyncio.gather(*(client.task for client in self._clients), return_exceptions=True)


@contextlib.asynccontextmanager
async def on_stage(
    *models: ModelConfig, run: bool = True, gauge: Gauge | None = None
) -> AsyncIterator[Stage]:
    """A running switcher; everything ends with the block."""
    stage = Stage(*models, gauge=gauge)
    if run:
        stage.run()
    try:
        yield stage
    finally:
        await stage.close()
        await stage.switcher.close()
        if stage.loop is not None:
            if stage.loop.done():
                stage.loop.result()
            stage.loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await stage.loop
