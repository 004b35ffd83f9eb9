# SPDX-License-Identifier: MIT
"""python3 -m tests.gpu.inside: goes through the plan. Runs in the machine, like the models."""

import argparse
import platform
import signal
import sys
from pathlib import Path

from tests.machine.ring import guest

from . import by_hand, faults, measure, plan, switches, variants

# What is wanted most comes first: a lent GPU may be gone before the end.
STEPS = (
    plan.Step("cold", 300, switches.cold, vital=True),
    plan.Step("image", 90, switches.image),
    plan.Step("image-switch", 90, switches.image_switch),
    plan.Step("park", 180, switches.park),
    plan.Step("both-fit", 60, switches.both_fit),
    plan.Step("moment", 60, switches.moment),
    plan.Step("seed", 360, by_hand.seed),
    plan.Step("check", 60, faults.check),
    plan.Step("killed-llmuxd", 120, faults.killed_llmuxd),
    plan.Step("killed-engine", 90, faults.killed_engine),
    plan.Step("full-gpu", 200, faults.full_gpu),
    plan.Step("small-pages", 90, variants.small_pages),
    plan.Step("no-cuda-part", 150, faults.no_cuda_part),
    plan.Step("levels", 150, variants.levels),
    plan.Step("cold-again", 300, switches.cold_again),
    plan.Step("live", 150, variants.live),
    plan.Step("eager", 240, variants.eager),
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
