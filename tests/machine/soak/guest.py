# SPDX-License-Identifier: MIT
"""The soak itself, in the machine: `python3 -m tests.machine.soak.guest MINUTES [SEED]`."""

import asyncio
import random
import sys
import time
from contextlib import suppress

from tests.bench.goals import Goals

from ..ring import guest
from . import clock, models, podman
from .clients import End, Load, Row
from .faults import Faults, NeverCame

# Seconds in which the clients go on after a fault, before the next.
BREATH = 1.5
BAD = (End.WRONG, End.LOST, End.HUNG)
GAP = 100.0  # milliseconds


def main() -> int:
    """Exit status 0 only if all goals are met."""
    minutes = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 1_000_000
    print(f"soak: {minutes:g} min, seed {seed}", flush=True)
    guest.require_machine()
    guest.stop_everything()
    guest.wipe()
    guest.begin()
    models.write()
    goals = Goals()
    with podman.wrapped(), clock.settable():
        guest.sh("systemctl", "start", "llmuxd.socket", "llmuxd.service")
        try:
            rows, gaps = asyncio.run(soak(minutes * 60, random.Random(seed)))
            crowds = models.crowds()
        finally:
            guest.stop_everything()
    _print(rows)
    for end in BAD:
        count = sum(row.ends[end] for row in rows)
        goals.line(f"requests {end}", str(count), "0", count == 0)
    never = [row.fault for row in rows if row.turns > 1 and not row.times]
    goals.line("faults that never came", ", ".join(never) or "none", "none", not never)
    if gaps:
        goals.line(
            "stream while PID 1 stands still",
            f"{max(gaps):.0f} ms more than the engine's own longest gap",
            f"below {GAP:.0f} ms",
            max(gaps) < GAP,
        )
    goals.line("stay on one GPU together", ", ".join(crowds) or "nobody", "nobody", not crowds)
    left = guest.leftovers()
    goals.line("left behind", ", ".join(left) or "nothing", "nothing", not left)
    bugs = [line for line in guest.journal("llmuxd.service").splitlines() if "Traceback" in line]
    goals.line("tracebacks in the journal", str(len(bugs)), "0", not bugs)
    guest.wipe()
    return 0 if goals.all_met else 1


async def soak(seconds: float, chance: random.Random) -> tuple[list[Row], list[float]]:
    """One fault after the other, in another order each round, until the time is over."""
    load = Load(models.NAMES, chance)
    faults = Faults(load, chance)
    rows = {name: Row(name) for name in faults.all}
    end = time.monotonic() + seconds
    load.start()
    await asyncio.sleep(3)
    order: list[str] = []
    while time.monotonic() < end:
        if not order:
            order = list(faults.all)
            chance.shuffle(order)
        row = rows[order.pop()]
        load.row = row
        row.turns += 1
        await asyncio.sleep(chance.uniform(0.2, 2.0))
        with suppress(NeverCame):
            await faults.all[row.fault]()
            row.times += 1
        await asyncio.sleep(BREATH)
    await load.stop()
    return list(rows.values()), faults.gaps


def _print(rows: list[Row]) -> None:
    ends = list(End)
    print(f"{'fault':34} {'times':>5} {'sent':>6} " + " ".join(f"{end:>7}" for end in ends))
    for row in rows:
        counts = " ".join(f"{row.ends[end]:7}" for end in ends)
        refusals = ", ".join(f"{how} x{count}" for how, count in row.refusals.most_common())
        print(f"{row.fault:34} {row.times:5} {row.ends.total():6} {counts}  {refusals}")
    for row in rows:
        for sample in row.samples[:5]:
            print(f"  {row.fault}: {sample}")


if __name__ == "__main__":
    sys.exit(main())
