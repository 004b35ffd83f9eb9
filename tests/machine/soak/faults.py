# SPDX-License-Identifier: MIT
"""The faults. Each is done to a machine at work, at a random moment, and undone by its end."""

import asyncio
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from llmuxd import names

from ..ring.guest import CHECKPOINTS, sh
from . import clock, host, models, podman
from .clients import Load
from .streams import gaps

# For how long a state that has to be met by chance is looked for.
PATIENCE = 12.0
RUN = Path("/run/llmux")


class NeverCame(Exception):
    """The moment that the fault needs did not come."""


class Faults:
    """All of them, by what the table calls them."""

    def __init__(self, load: Load, chance: random.Random):
        self._load = load
        self._chance = chance
        # Milliseconds: how much longer the longest gap in a stream through llmuxd was than the
        # longest in one past it, each time that PID 1 stood still.
        self.gaps: list[float] = []
        self.all: dict[str, Callable[[], Awaitable[None]]] = {
            "no fault": self._none,
            "kill -9 llmuxd, serving": self._kill_daemon,
            "kill -9 llmuxd, a model starting": lambda: self._kill_daemon("activating"),
            "kill -9 llmuxd, a model draining": self._kill_draining,
            "kill -9 llmuxd, a model leaving": lambda: self._kill_daemon("deactivating"),
            "kill -9 llmuxd, a model parking": self._kill_parking,
            "kill -9 llmuxd, two models meeting": self._kill_meeting,
            "kill -9 engine": self._kill_engine,
            "kill -9 conmon": self._kill_conmon,
            "kill -9 helper in ExecStart": lambda: self._kill_helper("activating"),
            "kill -9 helper in ExecStop": lambda: self._kill_helper("deactivating"),
            "restore fails": lambda: self._podman("fail", "restore", 6.0),
            "checkpoint fails": lambda: self._podman("fail", "checkpoint", 6.0),
            "checkpoint hangs": lambda: self._podman("hang", "checkpoint", 6.0),
            "podman hangs": lambda: self._podman("hang", "any", 4.0),
            "disk full": self._disk_full,
            "dbus-broker restarted": self._restart_bus,
            "PID 1 stands still for 10 s": self._stop_pid1,
            "clients leave at every phase": self._leave,
            "engine never answers": self._never_answers,
            "clock jumps": self._clock,
            "daemon-reload": self._daemon_reload,
            "restart llmuxd in mid-switch": self._restart_daemon,
            "reload removes a serving model": self._remove_model,
        }

    async def _none(self) -> None:
        await asyncio.sleep(2)

    async def _kill_daemon(self, when: str = "") -> None:
        if when:
            await self._unit_that_is(when)
        self._kill_one_that_serves(await _daemon())

    async def _kill_draining(self) -> None:
        self._load.lengthy = True
        try:
            pid = await _daemon()
            await self._model_that_drains()
            self._kill_one_that_serves(pid)
        finally:
            self._load.lengthy = False

    async def _kill_parking(self) -> None:
        """In the middle of a park or a wake, which begin and end with a record of it."""
        pid = await _daemon()
        before = _parked()
        end = time.monotonic() + PATIENCE
        while _parked() == before:
            if time.monotonic() > end:
                raise NeverCame("no model was parked or woken")
            await asyncio.sleep(0.003)
        self._kill_one_that_serves(pid)

    async def _kill_meeting(self) -> None:
        """While one comes in beside the one that is to leave for it."""
        pid = await _daemon()
        end = time.monotonic() + PATIENCE
        while not (RUN / "succession.json").exists():
            if time.monotonic() > end:
                raise NeverCame("no two models met")
            await asyncio.sleep(0.001)
        await asyncio.sleep(self._chance.uniform(0, 0.2))
        self._kill_one_that_serves(pid)

    def _kill_one_that_serves(self, pid: int) -> None:
        # Its connections die with it.
        self._load.excuse(None)
        _kill(pid)

    async def _kill_engine(self) -> None:
        name, run = await self._serving()
        pid = _first_process(Path(run["payload"]))
        self._load.excuse({name})
        _kill(pid)

    async def _kill_conmon(self) -> None:
        name, _ = await self._serving()
        pid = int(await _show(names.unit(name), "MainPID"))
        if not pid:
            raise NeverCame(f"{name} had left already")
        self._load.excuse({name})
        _kill(pid)

    async def _kill_helper(self, when: str) -> None:
        unit = await self._unit_that_is(when)
        key = "MainPID" if when == "activating" else "ControlPID"
        pid = int(await _show(unit, key))
        if not pid:
            raise NeverCame(f"{unit} was done already")
        _kill(pid)

    async def _podman(self, how: str, verb: str, seconds: float) -> None:
        with podman.misbehaving(how, verb):
            await asyncio.sleep(seconds)

    async def _disk_full(self) -> None:
        """For the images of one model, and for the records of all."""
        name = self._chance.choice(models.LIVE)
        facts = await asyncio.to_thread(
            sh, "podman", "container", "inspect", "--format", "{{.StaticDir}}",
            names.container(name), check=False,
        )  # fmt: skip
        places = [CHECKPOINTS] + ([Path(facts, "checkpoint")] if facts else [])
        try:
            for place in places:
                place.mkdir(parents=True, exist_ok=True)
                sh("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place))
                free = shutil.disk_usage(place).free
                (place / "filler").write_bytes(bytes(free))
            await asyncio.sleep(6)
        finally:
            for place in places:
                sh("umount", "--lazy", str(place), check=False)

    async def _restart_bus(self) -> None:
        await asyncio.to_thread(sh, "systemctl", "restart", "dbus.service")

    async def _stop_pid1(self) -> None:
        name, _ = await self._serving()
        begun = asyncio.Event()
        watching = asyncio.create_task(gaps(name, begun))
        await begun.wait()
        await host.ask(host.FREEZE)
        try:
            await asyncio.sleep(10)
        finally:
            await host.ask(host.GO_ON)
        try:
            self.gaps.append(await watching)
        except OSError as error:
            raise NeverCame(f"the stream did not run: {error}") from None

    async def _leave(self) -> None:
        self._load.hurried = True
        try:
            await asyncio.sleep(5)
        finally:
            self._load.hurried = False

    async def _never_answers(self) -> None:
        self._load.unanswered, self._load.stalled = True, self._load.row
        try:
            await asyncio.sleep(3)
            self._load.unanswered = False
            # Their models keep the GPU until their time is over: who waits for it is refused then.
            await self._load.answered()
        finally:
            self._load.unanswered, self._load.stalled = False, None

    async def _clock(self) -> None:
        try:
            for seconds in (3600, -7200):
                await clock.jump(seconds)
                await asyncio.sleep(2)
        finally:
            await clock.jump(0)

    async def _daemon_reload(self) -> None:
        await self._unit_that_is("activating", "deactivating")
        for _ in range(3):
            await asyncio.to_thread(sh, "systemctl", "daemon-reload")

    async def _restart_daemon(self) -> None:
        await self._unit_that_is("activating", "deactivating")
        await asyncio.to_thread(sh, "systemctl", "restart", "llmuxd.service")

    async def _remove_model(self) -> None:
        name, _ = await self._serving()
        models.write(without=name)
        try:
            await asyncio.to_thread(models.reload)
            await asyncio.sleep(3)
        finally:
            models.write()
            await asyncio.to_thread(models.reload)

    # The moments

    async def _unit_that_is(self, *states: str) -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            listed = await asyncio.to_thread(
                sh, "systemctl", "list-units", "--plain", "--no-legend", "--all", "llmux-model@*"
            )
            found = [line.split() for line in listed.splitlines()]
            matching = [fields[0] for fields in found if fields[2] in states]
            if matching:
                return self._chance.choice(matching)
            await asyncio.sleep(0.02)
        raise NeverCame(f"no unit was {' or '.join(states)}")

    async def _model_that_drains(self) -> None:
        """By llmuxd's own word while its unit is active still: systemd's begins later."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for name, state in (await asyncio.to_thread(models.states)).items():
                if state == "draining" and await _show(names.unit(name), "ActiveState") == "active":
                    return
            await asyncio.sleep(0.02)
        raise NeverCame("no model was draining")

    async def _serving(self) -> tuple[str, dict[str, str]]:
        """A model that is at work, and what is known of its run."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = []
            for name in models.NAMES:
                with suppress(OSError, ValueError):
                    run = (RUN / f"{names.slug(name)}.json").read_text(encoding="utf-8")
                    if not (RUN / f"{names.slug(name)}.parked.json").exists():
                        found.append((name, json.loads(run)))
            if found:
                return self._chance.choice(found)
            await asyncio.sleep(0.05)
        raise NeverCame("no model was serving")


def _parked() -> frozenset[str]:
    return frozenset(path.name for path in RUN.glob("*.parked.json"))


async def _daemon() -> int:
    pid = int(await _show("llmuxd.service", "MainPID"))
    if not pid:
        raise NeverCame("llmuxd was starting")
    return pid


async def _show(unit: str, key: str) -> str:
    return await asyncio.to_thread(sh, "systemctl", "show", "-P", key, unit)


def _first_process(group: Path) -> int:
    try:
        return int((group / "cgroup.procs").read_text(encoding="ascii").split()[0])
    except (OSError, IndexError):
        raise NeverCame("the model had left already") from None


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
