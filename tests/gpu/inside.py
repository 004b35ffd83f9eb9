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

from . import around, by_hand, checks, faults, full, measure, plan, switches, tuning, variants

# What is wanted most comes first: a lent GPU may be gone before the end. A limit has room for
# cold starts, where a step before has spoilt the images. From `cold` to `cold-again` all is there
# that the goals need, three times: a cold start is either the first one, or one that by hand, or a
# missing plugin, has made necessary.
STEPS = (
    plan.Step("cold", 400, switches.cold, vital=True, takes=185),
    plan.Step("image", 90, switches.image, takes=35),
    plan.Step("image-switch", 120, switches.image_switch, takes=55),
    plan.Step("park", 180, switches.park, takes=70),
    plan.Step("moment", 60, switches.moment, takes=18),
    plan.Step("seed", 400, by_hand.seed, takes=190),
    # Neither has an image now, which another definition would make void.
    plan.Step("eager", 160, partial(variants.eager, QWEN), takes=95),
    plan.Step("cold-again-opt", 200, partial(switches.cold_again, OPT, 1), takes=85),
    plan.Step("no-cuda-part", 200, faults.no_cuda_part, takes=100),
    plan.Step("cold-again", 400, partial(switches.cold_again, QWEN, 2), takes=200),
    plan.Step("killed-llmuxd", 150, faults.killed_llmuxd, takes=12),
    plan.Step("killed-engine", 150, faults.killed_engine, takes=25),
    plan.Step("full-gpu", 160, full.full_gpu, takes=22),
    plan.Step("parked-beside", 160, partial(full.parked_beside, "pristine"), takes=40),
    plan.Step("check", 90, checks.check, takes=20),
    plan.Step("around", 120, around.around, takes=6),
    plan.Step("live", 180, partial(variants.live, "2"), takes=50),
    plan.Step("tune-park", 180, partial(tuning.tune, QWEN, image_sleep="2"), takes=70),
    plan.Step("one-by-one", 120, switches.one_by_one, takes=55),
    plan.Step("spilled", 160, full.spilled, takes=35),
    plan.Step("both-fit", 120, switches.both_fit, takes=10),
    plan.Step("tune-image", 400, partial(tuning.tune, QWEN, park_sleep="1"), takes=170),
    plan.Step("eager-opt", 200, partial(variants.eager, OPT), takes=60),
    plan.Step("live-parked-beside", 200, partial(full.parked_beside, "live"), takes=30),
    plan.Step("live-whole", 300, partial(variants.live, "auto"), takes=110),
    plan.Step("cold-compiled", 150, switches.cold_compiled, takes=70),
    plan.Step("small-pages", 240, variants.small_pages, takes=30),
    *(
        plan.Step(f"parked-{sleep}", 300, partial(variants.parked_after, sleep), takes=takes)
        for sleep, takes in (("1", 25), ("2", 20), ("off", 50))
    ),
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
        try:
            steps[arguments.one].act(plan.Notes(arguments.notes))
        finally:
            _keep_journal(arguments.notes.with_name(f"{arguments.one}.journal"))
        return 0
    chosen = [steps[name] for name in arguments.only] if arguments.only else STEPS
    plan.run(chosen, arguments.results, arguments.seconds, _facts())
    return 0


def _keep_journal(path: Path) -> None:
    """All that was said in the machine since the step began: nobody can ask it afterwards."""
    said = ("journalctl", "--no-pager", "--no-hostname", "--output=short-precise", guest.since())
    path.write_text(guest.sh(*said, check=False))


def _facts() -> dict[str, object]:
    """What the results have to say of this host."""
    return {
        "kernel": platform.release(),
        "cores": len(measure.lines("/proc/cpuinfo", "processor")),
        "memory_GB": int(measure.lines("/proc/meminfo", "MemTotal")[0].split()[1]) / 1e6,
        "gpu": measure.gpu_name(),
        "huge_pages": measure.huge_pages(),
        "network": f"open: {why}" if (why := measure.why_open()) else "closed",
        "podman": guest.sh("podman", "--version"),
        "criu": guest.sh("criu", "--version"),
        "crun": guest.sh("crun", "--version").partition("\n")[0],
    }


if __name__ == "__main__":
    sys.exit(main())
