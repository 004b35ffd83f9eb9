# SPDX-License-Identifier: MIT
"""make bench-control: do clients that poll over D-Bus disturb a stream?

The whole llmuxd as a process on a private dbus-daemon, with a mock of systemd and a server that
sends a token each TOKEN seconds. The gaps between tokens are measured at the client, for a while
without and for a while with 200 clients that make 1,000 calls a second together, in turn.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from llmuxd.ctl import table
from tests.bus.llmuxd import Daemon, a_daemon
from tests.bus.private_bus import PrivateBus, a_private_bus
from tests.bus.systemd1 import Systemd
from tests.unit.engine import an_engine
from tests.unit.fake_units import an_activation

from .goals import Goals

CLIENTS = 200
RATE = 1000
TOKEN = 0.02
SECONDS = 6.0
ROUNDS = 5
# What a reader of a stream of 50 tokens a second does not see.
MOST = 0.010
CONFIG = "defaults: {image: i}\nmodels: {a: {}, b: {gpus: [1]}}\n"


async def stream(request: web.Request) -> web.StreamResponse:
    """A token each TOKEN seconds, by the clock, so that a late one delays no other."""
    response = web.StreamResponse()
    await response.prepare(request)
    begin = time.monotonic()
    for number in range(int(SECONDS / TOKEN)):
        await asyncio.sleep(max(0.0, begin + number * TOKEN - time.monotonic()))
        await response.write(b"data: x\n\n")
    return response


async def gaps(http: aiohttp.ClientSession, url: str) -> list[float]:
    """Seconds between the tokens of one stream."""
    body = {"model": "a", "stream": True}
    async with http.post(f"{url}/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        times = [time.monotonic() async for _ in response.content.iter_any()]
    return [after - before for before, after in zip(times, times[1:], strict=False)]


@asynccontextmanager
async def a_house() -> AsyncIterator[tuple[Daemon, PrivateBus]]:
    """llmuxd that serves the model `a`, and its bus."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
            os.environ[name] = str(directory / name)
        bus = stack.enter_context(a_private_bus(directory))
        os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = bus.address
        systemd = Systemd()
        await systemd.attach(bus)
        stack.push_async_callback(systemd.close)
        engine = await stack.enter_async_context(an_engine())
        engine.answer = stream
        systemd.come_up = lambda name: an_activation(name, engine.port).save()
        config = directory / "llmux.yaml"
        config.write_text(CONFIG)
        daemon = await stack.enter_async_context(a_daemon(config, directory))
        await daemon.notify("READY=1")
        yield daemon, bus


async def poll(bus: PrivateBus) -> int:
    """Poll for a little longer than a stream lasts; how many calls were answered."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.bus_load", bus.address, str(CLIENTS), str(RATE),
        str(SECONDS + 1), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    return int(out.split()[-1])


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(values, n=100)[98]


def ms(rounds: list[list[float]], of: Callable[[list[float]], float]) -> str:
    """The median of the rounds, in milliseconds."""
    return f"{statistics.median(map(of, rounds)) * 1e3:.1f}"


async def run() -> int:
    """Exit status 0 if the goals are met."""
    alone: list[list[float]] = []
    polled: list[list[float]] = []
    answered: list[int] = []
    async with a_house() as (daemon, bus), aiohttp.ClientSession() as http:
        await gaps(http, daemon.url)
        for _ in range(ROUNDS):
            alone.append(await gaps(http, daemon.url))
            load = asyncio.create_task(poll(bus))
            await asyncio.sleep(0.5)
            polled.append(await gaps(http, daemon.url))
            answered.append(await load)
    rows = [
        (name, *(ms(each, of) for of in (statistics.median, p99, max)))
        for name, each in (("alone", alone), (f"{CLIENTS} clients", polled))
    ]
    print(f"Gaps between tokens that are sent each {TOKEN * 1e3:.0f} ms, in ms;"
          f" medians of {ROUNDS} rounds of {SECONDS:.0f} s.")  # fmt: skip
    print(table.render(("", "median", "p99", "longest"), rows))
    before, after = (statistics.median(map(p99, each)) for each in (alone, polled))
    calls = statistics.median(answered) / (SECONDS + 1)
    print(f"p99 with : without = {after / before:.2f} : 1, at {calls:.0f} calls a second")
    goals = Goals()
    goals.line("calls answered", f"{calls:.0f}/s", f">= {RATE * 0.95:.0f}/s", calls >= RATE * 0.95)
    more = after - before
    goals.line("p99 gap added by polling", f"{more * 1e3:.1f} ms", f"<= {MOST * 1e3:.0f} ms",
               more <= MOST)  # fmt: skip
    return 0 if goals.all_met else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(run()))
