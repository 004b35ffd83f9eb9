# SPDX-License-Identifier: MIT
"""python3 -m tests.gpu.inside: goes through the plan. Runs in the machine, like the models."""

import argparse
import platform
import signal
import sys
from functools import partial
from pathlib import Path

from tests.machine.ring import guest
from tests.machine.ring.guest import OPT, QWEN

from . import by_hand, faults, measure, plan, switches, tuning, variants

# What is wanted most comes first: a lent GPU may be gone before the end.
STEPS = (
    plan.Step("cold", 300, switches.cold, vital=True, takes=175),
    plan.Step("image", 90, switches.image, takes=35),
    plan.Step("image-switch", 90, switches.image_switch, takes=50),
    plan.Step("park", 180, switches.park, takes=85),
    plan.Step("moment", 60, switches.moment, takes=30),
    plan.Step("seed", 360, by_hand.seed, takes=215),
    plan.Step("check", 60, faults.check, takes=30),
    plan.Step("one-by-one", 90, switches.one_by_one, takes=55),
    plan.Step("cold-again", 330, partial(switches.cold_again, QWEN), takes=195),
    plan.Step("small-pages", 90, variants.small_pages, takes=40),
    plan.Step("killed-llmuxd", 60, faults.killed_llmuxd, takes=10),
    plan.Step("killed-engine", 60, faults.killed_engine, takes=15),
    plan.Step("levels", 150, variants.levels, takes=100),
    plan.Step("full-gpu", 240, faults.full_gpu, takes=130),
    plan.Step("no-cuda-part", 150, faults.no_cuda_part, takes=70),
    plan.Step("live", 150, variants.live, takes=90),
    plan.Step("eager", 240, variants.eager, takes=160),
    plan.Step("cold-again-opt", 300, partial(switches.cold_again, OPT), takes=150),
    plan.Step("cold-compiled", 150, switches.cold_compiled, takes=80),
    plan.Step("both-fit", 60, switches.both_fit, takes=20),
    plan.Step("tune", 600, partial(tuning.tune, QWEN), takes=350),
    plan.Step("tune-opt", 420, partial(tuning.tune, OPT), takes=230),
)


def main() -> int:
    """Exit status 0 when the plan was gone through, whatever came out."""
    parser = argparse.ArgumentParser(prog=f"python3 -m {__package__}.inside", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("/var/lib/llmux-results/results.json"))
    parser.add_argument("--seconds", type=float, default=3600.0, help="for the whole plan")
    parser.add_argument("--only", nargs="*", metavar="STEP", help="just these")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--notes", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    guest.require_machine()
    steps = {step.name: step for step in STEPS}
    if arguments.one:
        # Out of time: whatever was taken away is put back on the way out.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        guest.begin()
        steps[arguments.one].act(plan.Notes(arguments.notes))
        return 0
    chosen = [steps[name] for name in arguments.only] if arguments.only else STEPS
    plan.run(chosen, arguments.results, arguments.seconds, _facts())
    return 0


def _facts() -> dict[str, object]:
    """What the results have to say of this host."""
    return {
        "kernel": platform.release(),
        "cores": len(measure.lines("/proc/cpuinfo", "processor")),
        "memory_GB": int(measure.lines("/proc/meminfo", "MemTotal")[0].split()[1]) / 1e6,
        "gpu": measure.gpu_name(),
        "huge_pages": measure.huge_pages(),
        "podman": guest.sh("podman", "--version"),
        "criu": guest.sh("criu", "--version"),
        "crun": guest.sh("crun", "--version").partition("\n")[0],
    }


if __name__ == "__main__":
    sys.exit(main())
