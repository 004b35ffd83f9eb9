# SPDX-License-Identifier: MIT
"""The daemon's life: start, ready, reload, watchdog, stop; owns every task."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import sdnotify

from . import accepted, config, garbage, keys, listening
from .bus import Bus
from .control import Control
from .errors import ConfigInvalid, LlmuxError, NoSocket
from .events import Event, about
from .gpus import Gpus
from .proxy import BACKLOG, Proxy
from .state import State
from .switcher import Switcher
from .units import Units

log = logging.getLogger(__name__)

BUS_RETRY = 1.0
# Seconds between two looks at what all models do, for the status line.
STATUS_PAUSE = 0.1


class Daemon:
    """One llmuxd. `port`: listen there on loopback instead of systemd's socket."""

    def __init__(self, path: Path, loaded: config.Config, port: int | None):
        self._path = path
        self._loaded = loaded
        self._port = port
        self._notify = sdnotify.SystemdNotifier().notify
        self._units = Units()
        self._gpus = Gpus()
        self._switcher = Switcher(loaded, self._units, self._gpus.measure)
        self._control = Control(self._switcher, self._gpus, self.reload)
        known = keys.load(loaded)
        self._keys_needed = known is not None
        self._proxy = Proxy(self._switcher, self._gpus, known)
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._failure: BaseException | None = None
        self._status = ""
        self._telling: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; requests in flight end first."""
        try:
            await self._serve()
        finally:
            await self._units.close()
        if self._failure is not None:
            raise self._failure

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        sockets = listening_sockets(self._port)
        if not self._keys_needed and any(map(_is_open, sockets)):
            log.warning("whoever reaches this host's port can use every model: see 'keys' in"
                        " llmux.yaml(5)")  # fmt: skip
        self._gpus.changed = self._measured
        self._own(self._gpus.run(), "gpus")
        bus = await self._connect()
        # Not before the name is taken: models of another llmuxd would read it.
        await asyncio.to_thread(accepted.publish, self._loaded)
        try:
            await self._serve_on(sockets, bus)
        finally:
            accepted.withdraw()

    async def _serve_on(self, sockets: list[socket.socket], bus: Bus) -> None:
        self._own(self._switcher.run(), "switcher")
        self._own(self._keep_connected(bus), "bus")
        self._own(self._watchdog(), "watchdog")
        self._own(self._reload_on_hangup(), "hangup")
        # Who connected to the meter has started it: the first to be let in would wait for that.
        await self._gpus.first()
        await self._proxy.start(sockets)
        self._notify("READY=1")
        self._switcher.listeners.append(self._tell)
        self._tell_now()
        garbage.settle()
        log.info("serving %d models", len(self._switcher.names()))
        await self._stop.wait()
        await self._shut_down()

    async def reload(self) -> None:
        """Take the configuration file as it is now; an error leaves all as it was."""
        async with self._reloading:
            try:
                loaded = await asyncio.to_thread(config.load, self._path)
                known = await asyncio.to_thread(keys.load, loaded)
                await asyncio.to_thread(accepted.publish, loaded)
            except ConfigInvalid as error:
                log.error("the configuration stays as it was: %s", error,
                          extra=about(Event.CONFIG_REFUSED))  # fmt: skip
                raise
            self._switcher.reload(loaded)
            self._proxy.take_keys(known)
        log.info("configuration reloaded, %d models", len(loaded.models),
                 extra=about(Event.CONFIG_RELOADED))  # fmt: skip

    async def _reload_on_hangup(self) -> None:
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            # Nobody waits for the answer; the journal has it.
            with contextlib.suppress(ConfigInvalid):
                await self.reload()

    async def _shut_down(self) -> None:
        self._notify("STOPPING=1\nSTATUS=letting requests in flight end")
        log.info("stopping; the models go on")
        await self._proxy.close()
        await self._switcher.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self) -> Bus:
        bus = Bus()
        await bus.connect()
        try:
            await self._units.attach(bus)
            # Before the name is taken: whoever calls from then on is told what is true.
            await self._switcher.adopt()
            await self._control.attach(bus)
        except BaseException:
            bus.disconnect()
            raise
        return bus

    async def _keep_connected(self, bus: Bus) -> None:
        try:
            while True:
                with contextlib.suppress(Exception):
                    await bus.wait_for_disconnect()
                log.warning("the system bus is gone; connecting again",
                            extra=about(Event.BUS_LOST))  # fmt: skip
                self._units.detach()
                self._control.detach()
                # It may be broken on this side only, and would keep the name.
                with contextlib.suppress(OSError):
                    bus.disconnect()
                bus = await self._connect_again()
                log.info("connected to the system bus again")
        finally:
            bus.disconnect()

    async def _connect_again(self) -> Bus:
        while True:
            try:
                return await self._connect()
            except (OSError, EOFError, LlmuxError) as error:
                log.debug("no system bus yet: %s", error)
                await asyncio.sleep(BUS_RETRY)

    async def _watchdog(self) -> None:
        """Tell systemd that the loop turns, twice as often as it wants to hear."""
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
        while interval:
            self._notify("WATCHDOG=1")
            await asyncio.sleep(interval)

    def _measured(self) -> None:
        self._switcher.measure(self._gpus.read())
        self._control.gpus_changed()

    def _tell(self, name: str) -> None:
        """Keep `systemctl status llmuxd` true, soon: each request that comes or goes is told."""
        if self._telling is None:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_later(STATUS_PAUSE, self._tell_now)

    def _tell_now(self) -> None:
        self._telling = None
        serving = [n for n in self._switcher.names() if self._switcher.state(n) is State.SERVING]
        status = f"{len(self._switcher.names())} models, serving: {', '.join(serving) or 'none'}"
        # Only what changed: PID 1 may be slow to read, and the socket to it blocks when full.
        if status != self._status:
            self._status = status
            self._notify(f"STATUS={status}")

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        # Half a daemon is worse than a restarted one: the models go on meanwhile.
        self._failure = task.exception()
        self._stop.set()


def _is_open(sock: socket.socket) -> bool:
    """Whether other hosts can connect to it."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return not ipaddress.ip_address(sock.getsockname()[0]).is_loopback


def listening_sockets(port: int | None) -> list[socket.socket]:
    """The sockets that systemd passed, or one on 127.0.0.1:`port`."""
    if port is not None:
        return [socket.create_server(("127.0.0.1", port), backlog=BACKLOG)]
    sockets = listening.passed()
    if not sockets:
        # They are another process's (sd_listen_fds(3)); ready and deaf would help nobody.
        raise NoSocket("systemd passed no socket to this process")
    return sockets
