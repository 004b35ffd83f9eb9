# SPDX-License-Identifier: MIT
"""What requests leave behind for the garbage collector, which looks seldom."""

import asyncio
import gc
import subprocess
import sys

from .house import ASK, CHAT, House

_SETTLED = """
import gc
from llmuxd import garbage
before = len(gc.get_objects())
garbage.settle()
print(before > 1000, len(gc.get_objects()) < 100, gc.get_threshold()[0] > 700)
"""


def test_what_is_there_when_the_daemon_is_complete_is_not_looked_through_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SETTLED], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True True True\n"


async def test_requests_leave_no_garbage(house: House) -> None:
    async def ask(times: int) -> None:
        for _ in range(times):
            await house.post(ASK)
            await house.post({"model": "no-such"})

    await ask(5)
    gc.collect()
    gc.disable()
    try:
        await ask(50)
        found = gc.collect()
    finally:
        gc.enable()
    assert found < 50


async def test_closed_connections_leave_no_garbage(house: House) -> None:
    """Those of clients."""

    async def ask(times: int) -> None:
        for _ in range(times):
            head = f"POST {CHAT} HTTP/1.1\nHost: x\nConnection: close\n"
            await house.raw(f"{head}Content-Length: 18\n", b'{"model": "org/a"}')

    await ask(5)
    await asyncio.sleep(0)
    gc.collect()
    gc.disable()
    try:
        await ask(50)
        await asyncio.sleep(0)
        found = gc.collect()
    finally:
        gc.enable()
    assert len(house.engine.seen) == 55
    # With Python 3.11 the test's own ends leave seven objects each; ours would as well.
    assert found < 1000
