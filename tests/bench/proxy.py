# SPDX-License-Identifier: MIT
"""make bench-proxy: what llmuxd's proxy costs, beside others before the same backend.

The backend is nginx with one fixed answer; client, backend and proxy share the host's cores, and
the contenders take turns, so that noise is everybody's. Every figure is a median over the rounds.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from llmuxd.ctl import table

from . import contenders, load
from .contenders import Contender
from .goals import Goals
from .load import Load

CONNECTIONS = (1, 16, 64, 256)
PARTS = ("requests", "litellm", "steady", "endure", "scraped", "streams")
PACKAGES = ("nginx-light", "wrk")
# Where the direct rate at 16 connections was this, 6000 a second were wanted of the proxy.
REFERENCE_DIRECT = 108_000
REFERENCE_RATE = 6_000
STEADY_RATE = 500.0
PACE_MS = 40
MIB = 1 << 20

Results = dict[tuple[str, int], list[Load]]


def main() -> int:
    """Exit status 0 only if every goal is met."""
    arguments = _arguments()
    _install()
    goals = Goals()
    parts = arguments.only or PARTS
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        scratch = Path(directory)
        # nginx drops its privileges and still has to write here.
        scratch.chmod(0o755)
        direct = stack.enter_context(contenders.backend(scratch))
        ours = stack.enter_context(contenders.llmuxd(direct.port))
        if "requests" in parts:
            proxies = [
                direct,
                stack.enter_context(contenders.reverse_nginx(scratch, direct.port)),
                stack.enter_context(contenders.plain(direct.port)),
                ours,
            ]
            if arguments.uvloop:
                proxies.append(
                    stack.enter_context(contenders.llmuxd(direct.port, "uvloop", name="on uvloop"))
                )
            _judge_requests(goals, _requests(arguments, scratch, proxies))
        if "litellm" in parts:
            _beside_litellm(goals, scratch, direct, ours)
        if "steady" in parts:
            _steady(goals, arguments.rounds, direct, ours)
        for part in ("endure", "scraped"):
            if part in parts:
                _endure(goals, arguments.requests, scratch, direct, part == "scraped")
    if "streams" in parts:
        _streams(goals)
    return 0 if goals.all_met else 1


def _requests(arguments: argparse.Namespace, scratch: Path, proxies: list[Contender]) -> Results:
    small = load.script(scratch, "small", load.body())
    large = load.script(scratch, "large", load.body(MIB))
    results: Results = defaultdict(list)
    for contender in proxies:
        load.wrk(contender, 16, 1, small)
    for _ in range(arguments.rounds):
        for connections in CONNECTIONS:
            for contender in proxies:
                found = load.wrk(contender, connections, arguments.seconds, small)
                results[contender.name, connections].append(found)
        for contender in proxies:
            found = load.wrk(contender, 16, arguments.seconds, large)
            results[contender.name, MIB].append(found)
    _print(results)
    return results


def _print(results: Results) -> None:
    header = ["PROXY", "CONNECTIONS", "REQ/S", "P50 MS", "P99 MS", "CPU µS/REQ", "FAILED"]
    rows = []
    for (name, connections), found in results.items():
        what = "16, 1 MiB" if connections == MIB else str(connections)
        rows.append(
            [
                name, what, f"{_median(found, _rate):.0f}",
                f"{_median(found, lambda one: one.p50) * 1e3:.3f}",
                f"{_median(found, lambda one: one.p99) * 1e3:.2f}",
                f"{_median(found, _processor) * 1e6:.0f}",
                str(sum(one.failed for one in found)),
            ]
        )  # fmt: skip
    print(table.render(header, rows))


def _judge_requests(goals: Goals, results: Results) -> None:
    ours = results["llmuxd", 1]
    p50 = _median(ours, lambda one: one.p50) * 1e6
    goals.line("p50 at 1 connection", f"{p50:.0f} µs", "below 400 µs", p50 < 400)
    used = _median(ours, _processor) * 1e6
    goals.line("CPU a request", f"{used:.0f} µs", "below 250 µs", used < 250)
    scale = _median(results["direct", 16], _rate) / REFERENCE_DIRECT
    wanted = REFERENCE_RATE * min(scale, 1.0)
    for connections in (16, 64):
        rate = _median(results["llmuxd", connections], _rate)
        goals.line(
            f"requests a second at {connections} connections", f"{rate:.0f}",
            f"above {wanted:.0f}, 6000 scaled by the direct figure", rate > wanted,
        )  # fmt: skip
    share = statistics.median(
        our.rate / plain.rate
        for connections in (1, 16, 64)
        for our, plain in zip(
            results["llmuxd", connections], results["aiohttp", connections], strict=True
        )
    )
    goals.line("share of plain aiohttp", f"{share:.0%}", "at least 90%", share >= 0.9)
    failed = sum(one.failed for (name, _), found in results.items() if name == "llmuxd"
                 for one in found)  # fmt: skip
    goals.line("failed requests", str(failed), "none", failed == 0)
    nginx = _median(results["nginx", 1], _processor) * 1e6
    print(f"left to nginx: {used:.0f} µs of CPU a request against {nginx:.0f} µs")


def _beside_litellm(goals: Goals, scratch: Path, direct: Contender, ours: Contender) -> None:
    small = load.script(scratch, "small", load.body())
    with contenders.litellm(scratch, direct.port) as theirs:
        load.wrk(theirs, 16, 2, small)
        pairs = [(load.wrk(ours, 16, 2, small), load.wrk(theirs, 16, 3, small)) for _ in range(3)]
    ratio = statistics.median(our.rate / their.rate for our, their in pairs)
    print(f"litellm: {statistics.median(their.rate for _, their in pairs):.0f} requests a second")
    goals.line("times litellm", f"{ratio:.1f}", "at least 5", ratio >= 5)


def _steady(goals: Goals, rounds: int, direct: Contender, ours: Contender) -> None:
    """Latency where nothing is at its limit, by the same Python client for both."""
    added: dict[int, list[float]] = {50: [], 99: []}
    for _ in range(rounds):
        runs = [asyncio.run(load.steady(one.port, 16, STEADY_RATE, 4.0)) for one in (direct, ours)]
        for percent, found in added.items():
            straight, through = (_percentile(run, percent) for run in runs)
            found.append(through - straight)
    for percent, bound in ((50, 0.5), (99, 3.0)):
        milliseconds = statistics.median(added[percent]) * 1e3
        goals.line(
            f"added p{percent} at 500 requests a second", f"{milliseconds:.2f} ms",
            f"below {bound:g} ms", milliseconds < bound,
        )  # fmt: skip


def _endure(goals: Goals, requests: int, scratch: Path, direct: Contender, scraped: bool) -> None:
    """Memory of a fresh process over many requests, each run of wrk with new connections."""
    small = load.script(scratch, "small", load.body())
    with contenders.llmuxd(direct.port) as ours:
        for _ in range(3):
            load.wrk(ours, 64, 1, small)
            _scrape(ours)
        before = ours.resident_mb
        done, scrapes = 0, 0
        while done < requests:
            done += load.wrk(ours, 64, 2, small).requests
            if scraped:
                _scrape(ours)
                scrapes += 1
        grown = ours.resident_mb - before
    how = f"scraped {scrapes} times" if scraped else "not scraped"
    goals.line(
        f"growth over {done} requests, {how}", f"{grown:.1f} MB of {before:.0f}", "below 2 MB",
        grown < 2,
    )  # fmt: skip


def _scrape(ours: Contender) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{ours.port}/metrics") as page:
        page.read()


def _streams(goals: Goals) -> None:
    with contenders.streams() as backend, contenders.llmuxd(backend) as ours:
        gaps = {"direct": [0.0], "llmuxd": [0.0]}
        for name, port in (("direct", backend), ("llmuxd", ours.port)) * 2:
            seen = asyncio.run(load.stream(port, 100, 500, PACE_MS))
            gaps[name].append(seen.p99)
        straight, through = (max(gaps[name]) * 1e3 for name in ("direct", "llmuxd"))
        print(f"100 streams, a chunk each {PACE_MS} ms: p99 gap {straight:.1f} ms direct,"
              f" {through:.1f} ms through llmuxd")  # fmt: skip
        goals.line(
            "added p99 gap between chunks", f"{through - straight:.2f} ms", "below 5 ms",
            through - straight < 5,
        )  # fmt: skip
        peak = asyncio.run(_watch_memory(ours))
        goals.line("memory at 1000 streams", f"{peak:.0f} MB", "below 60 MB", peak < 60)


async def _watch_memory(ours: Contender) -> float:
    """The most that it held while 1000 streams ran."""
    task = asyncio.create_task(load.stream(ours.port, 1000, 8, 1000))
    peak = 0.0
    while not task.done():
        peak = max(peak, ours.resident_mb)
        await asyncio.wait([task], timeout=0.2)
    task.result()
    return peak


def _rate(one: Load) -> float:
    return one.rate


def _processor(one: Load) -> float:
    return one.processor


def _median(found: list[Load], what: Callable[[Load], float]) -> float:
    return statistics.median(what(one) for one in found)


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def _install() -> None:
    missing = [name for name in PACKAGES if not Path(f"/usr/share/doc/{name}").exists()]
    if missing:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(
            ["apt-get", "-q", "install", "--yes", "--no-install-recommends", *missing],
            env=environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of each run of wrk")
    parser.add_argument("--requests", type=int, default=50_000, help="whose memory is watched")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part, or these")
    parser.add_argument("--uvloop", action="store_true", help="also on uvloop, if it is there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
