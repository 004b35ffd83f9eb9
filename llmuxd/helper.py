# SPDX-License-Identifier: MIT
"""Has a model's unit park it, and bring it back: by the helper that stayed in it, or by a reload.

Whether it did is read from what it left in /run/llmux, as after a restart of llmuxd.
"""

import asyncio
import contextlib
import logging

from .model.activation import order_park, socket_path, take_park_order
from .units import Units

log = logging.getLogger(__name__)

# The driver's steps have limits of their own, four of 240 s at most; an engine's take 240 s.
LIMIT = 1800.0


async def park(units: Units, name: str) -> None:
    """Take the model off its GPU and freeze its container."""
    if await _ask(name, "park"):
        return
    await asyncio.to_thread(order_park, name)
    try:
        await units.reload(name)
    finally:
        # One that was not carried out must not meet a later reload.
        await asyncio.to_thread(take_park_order, name)


async def wake(units: Units, name: str) -> None:
    """The reverse."""
    if not await _ask(name, "wake"):
        await units.reload(name)


async def _ask(name: str, verb: str) -> bool:
    """Ask the helper and wait for its answer; False where none listens, or it went away."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket_path(name))
    except OSError:
        return False
    try:
        writer.write(f"{verb}\n".encode())
        answer = await asyncio.wait_for(reader.readline(), LIMIT)
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if answer and answer != b"done\n":
        log.warning("%s: %s", name, answer.decode(errors="replace").strip())
    return bool(answer)
