# SPDX-License-Identifier: MIT
"""Has a model's unit park it, and bring it back: by the helper that stayed in it, or by a reload.

Whether it did is read from what it left in /run/llmux, as after a restart of llmuxd.
"""

import asyncio
import contextlib
import logging

from .config import Sleep
from .model.activation import order_park, socket_path, take_park_order
from .units import Units

log = logging.getLogger(__name__)

# The driver's steps have limits of their own, four of 240 s at most; an engine's take 240 s.
LIMIT = 1800.0


async def park(units: Units, name: str, sleep: Sleep | None = None) -> str:
    """Take the model off its GPU and freeze its container; why it was not, as far as it says.

    `sleep`: have it let go of this, and not of what it usually does.
    """
    answer = await _ask(name, "park" if sleep is None else f"park {sleep}")
    if answer:
        return _why_not(answer)
    await asyncio.to_thread(order_park, name, sleep)
    try:
        await units.reload(name)
    finally:
        # One that was not carried out must not meet a later reload.
        await asyncio.to_thread(take_park_order, name)
    return ""


async def wake(units: Units, name: str) -> str:
    """The reverse; why it is not back, as far as it says."""
    answer = await _ask(name, "wake")
    if not answer:
        await units.reload(name)
    return _why_not(answer)


def _why_not(answer: str) -> str:
    return "" if answer == "done" else answer.removeprefix("failed: ")


async def _ask(name: str, verb: str) -> str:
    """Ask the helper and wait for its answer; empty where none listens, or it went away."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket_path(name))
    except OSError:
        return ""
    try:
        writer.write(f"{verb}\n".encode())
        answer = await asyncio.wait_for(reader.readline(), LIMIT)
    except (OSError, TimeoutError):
        return ""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    text = answer.decode(errors="replace").strip()
    if text and text != "done":
        log.warning("%s: %s", name, text)
    return text
