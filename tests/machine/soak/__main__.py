# SPDX-License-Identifier: MIT
"""The part on the host: runs the soak in the machine, and stops its PID 1 when it is asked to."""

import argparse
import os
import signal
import subprocess
import sys

from .. import parts
from ..machine import Machine
from .host import FREEZE, GO_ON

THERE = "/usr/src/llmuxd"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.machine.soak", description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="of what is drawn at random")
    arguments = parser.parse_args()
    machine = Machine(os.environ.get("LLMUX_MACHINE", "soak"))
    was_up = machine.is_up()
    if not was_up:
        parts.build(["fake"])
    machine.boot()
    try:
        return _soak(machine, arguments.minutes, arguments.seed)
    finally:
        if not was_up:
            machine.poweroff()


def _soak(machine: Machine, minutes: float, seed: int | None) -> int:
    script = f'cd {THERE} && exec python3 -B -m tests.machine.soak.guest "$@"'
    told = [str(minutes), *([str(seed)] if seed is not None else [])]
    with subprocess.Popen(
        machine.command(["sh", "-c", script, "soak", *told]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as guest:
        assert guest.stdin is not None and guest.stdout is not None
        try:
            for line in guest.stdout:
                if line.strip() not in (FREEZE, GO_ON):
                    print(line, end="", flush=True)
                    continue
                number = signal.SIGSTOP if line.strip() == FREEZE else signal.SIGCONT
                os.kill(machine.leader, number)
                print("done", file=guest.stdin, flush=True)
        finally:
            # Whatever happened here: a machine whose PID 1 stands still cannot even be ended.
            os.kill(machine.leader, signal.SIGCONT)
        return guest.wait()


if __name__ == "__main__":
    sys.exit(main())
