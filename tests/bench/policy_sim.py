# SPDX-License-Identifier: MIT
"""Ours against first come first served and against collating, on a simulated clock.

`python3 -m tests.bench.policy_sim [TRACE]`; exit status 0 only if all goals are met.
"""

import sys
from statistics import quantiles

from .arrivals import Trace, traces
from .goals import Goals
from .schedulers import Collate, Fifo, Ours
from .world import World

SLACK = 0.02
GAIN = 10.0
LOW = 0.06


def main() -> int:
    """A table for each trace, then the goals."""
    wanted = sys.argv[1:]
    played = [(t, play(t)) for t in traces() if not wanted or t.name in wanted]
    goals = Goals()
    for trace, runs in played:
        judge(goals, trace, runs)
    return 0 if goals.all_met else 1


def play(trace: Trace) -> dict[str, World]:
    """The same arrivals and switches for each of the three."""
    work = sum(arrival.work * (1 + arrival.more) for arrival in trace.arrivals)
    count = sum(1 + arrival.more for arrival in trace.arrivals)
    begin = trace.arrivals[-1].at
    when = f"in {begin:.0f} s" if count == len(trace.arrivals) else "one after the other"
    switch = trace.switch
    print(
        f"{trace.name}: {len(trace.models)} models, {count} requests {when}, "
        f"{work:.0f} GPU-seconds of work; switch: {switch.what}, "
        f"{switch.out} s out and {switch.back} s back; max_wait {trace.max_wait:.0f} s"
    )
    print(
        f"  {'scheduler':10} {'serving':>8} {'ratio':>6} {'switches':>9} {'p50 s':>9} {'p99 s':>9}"
        f" {'max s':>9} {'starved':>8}"
    )
    runs: dict[str, World] = {}
    for name, scheduler in (("FIFO", Fifo()), ("collate", Collate()), ("ours", Ours(trace))):
        world = runs[name] = World(trace, scheduler)
        world.run()
        percent = quantiles(world.waits, n=100)
        starved = sum(wait > trace.bound for wait in world.waits)
        print(
            f"  {name:10} {world.share:8.1%} {world.share / runs['FIFO'].share:5.1f}x"
            f" {world.switches:9} {percent[49]:9.1f} {percent[98]:9.1f} {max(world.waits):9.1f}"
            f" {starved:8}"
        )
    print(flush=True)
    return runs


def judge(goals: Goals, trace: Trace, runs: dict[str, World]) -> None:
    """What is wanted on this trace."""
    fifo, ours = runs["FIFO"].share, runs["ours"].share
    best = max(fifo, runs["collate"].share)
    if trace.name in ("alternation", "agents"):
        goals.line(f"FIFO on {trace.name}", f"{fifo:.1%} serving", f"below {LOW:.0%}", fifo < LOW)
        goals.line(
            f"gain on {trace.name}",
            f"{ours / fifo:.1f} times FIFO's serving share",
            f"at least {GAIN:.0f}",
            ours >= GAIN * fifo,
        )
    goals.line(
        f"serving share, {trace.name}",
        f"{ours / best - 1:+.2%} against the better peer",
        f"at least -{SLACK:.0%}",
        ours >= (1 - SLACK) * best,
    )
    longest = max(runs["ours"].waits)
    goals.line(
        f"longest wait, {trace.name}",
        f"{longest:.1f} s",
        f"at most {trace.bound:.1f}: max_wait {trace.max_wait:.0f} and one switch",
        longest <= trace.bound,
    )


if __name__ == "__main__":
    sys.exit(main())
