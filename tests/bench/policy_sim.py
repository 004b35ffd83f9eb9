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
SEEDS = range(1, 6)
# Those on which first come first served does nothing but switch.
THRASHED = ("alternation", "agents")

Runs = dict[str, World]


def main() -> int:
    """A table for each trace with the first seed; the goals are held by the worst of all seeds."""
    wanted = sys.argv[1:]
    played: dict[str, list[Runs]] = {}
    for seed in SEEDS:
        for trace in traces(seed):
            if not wanted or trace.name in wanted:
                runs = play(trace)
                played.setdefault(trace.name, []).append(runs)
                if seed == SEEDS[0]:
                    show(trace, runs)
    goals = Goals()
    print(f"the worst of {len(SEEDS)} seeds:")
    for name, all_runs in played.items():
        judge(goals, name, all_runs)
    return 0 if goals.all_met else 1


def play(trace: Trace) -> Runs:
    """The same arrivals and switches for each of the three."""
    runs = {
        "FIFO": World(trace, Fifo()),
        "collate": World(trace, Collate()),
        "ours": World(trace, Ours(trace)),
    }
    for world in runs.values():
        world.run()
    return runs


def show(trace: Trace, runs: Runs) -> None:
    """The table of one trace."""
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
    for name, world in runs.items():
        percent = quantiles(world.waits, n=100)
        starved = sum(wait > trace.bound for wait in world.waits)
        print(
            f"  {name:10} {world.share:8.1%} {world.share / runs['FIFO'].share:5.1f}x"
            f" {world.switches:9} {percent[49]:9.1f} {percent[98]:9.1f} {max(world.waits):9.1f}"
            f" {starved:8}"
        )
    print(flush=True)


def judge(goals: Goals, name: str, all_runs: list[Runs]) -> None:
    """What is wanted on this trace, with whatever seed."""
    if name in THRASHED:
        fifo = max(runs["FIFO"].share for runs in all_runs)
        goals.line(f"FIFO on {name}", f"{fifo:.1%} serving", f"below {LOW:.0%}", fifo < LOW)
        gain = min(runs["ours"].share / runs["FIFO"].share for runs in all_runs)
        goals.line(
            f"gain on {name}",
            f"{gain:.1f} times FIFO's serving share",
            f"at least {GAIN:.0f}",
            gain >= GAIN,
        )
    behind = min(
        runs["ours"].share / max(runs["FIFO"].share, runs["collate"].share) - 1 for runs in all_runs
    )
    goals.line(
        f"serving share, {name}",
        f"{behind:+.2%} against the better peer",
        f"at least -{SLACK:.0%}",
        behind >= -SLACK,
    )
    longest = max(max(runs["ours"].waits) for runs in all_runs)
    trace = all_runs[0]["ours"].trace
    goals.line(
        f"longest wait, {name}",
        f"{longest:.1f} s",
        f"at most {trace.bound:.1f}: max_wait {trace.max_wait:.0f} and one switch",
        longest <= trace.bound,
    )


if __name__ == "__main__":
    sys.exit(main())
