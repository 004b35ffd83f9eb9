# SPDX-License-Identifier: MIT
"""What only the host can do for the soak in the machine: asked for on standard output."""

import asyncio
import sys

FREEZE = "HOST: stop PID 1"
GO_ON = "HOST: let PID 1 go on"


async def ask(what: str) -> None:
    """Have the host do it; done when this returns."""
    print(what, flush=True)
    answer = await asyncio.to_thread(sys.stdin.readline)
    if answer.strip() != "done":
        raise RuntimeError("nobody answers on the host: python3 -m tests.machine.soak runs this")
