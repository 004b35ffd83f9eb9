# SPDX-License-Identifier: MIT
"""llmuxd's wall clock, set while it runs; that of the machine is the host's and stays."""

import asyncio
import email.utils
import os
import struct
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..libraries import CLOCK
from ..ring.guest import sh

OFFSET = Path("/run/soak-clock")
_DROP_IN = Path("/run/systemd/system/llmuxd.service.d/soak-clock.conf")
_LINES = f"[Service]\nEnvironment=LD_PRELOAD={CLOCK.there} CLOCK_OFFSET={OFFSET}\n"
# The Date of an answer is that of the second in which it was made, at the latest.
_AGREES = 3.0


@contextmanager
def settable() -> Iterator[None]:
    """From llmuxd's next start on, and until the one after this."""
    OFFSET.write_bytes(struct.pack("=q", 0))
    _DROP_IN.parent.mkdir(exist_ok=True)
    _DROP_IN.write_text(_LINES, encoding="ascii")
    sh("systemctl", "daemon-reload")
    try:
        yield
    finally:
        _DROP_IN.unlink()
        _DROP_IN.parent.rmdir()
        OFFSET.unlink()
        sh("systemctl", "daemon-reload")


async def jump(seconds: int) -> None:
    """Set it to the host's plus `seconds`; AssertionError if llmuxd's answers say otherwise."""
    file = os.open(OFFSET, os.O_WRONLY)
    try:
        # In place, in one piece: it is mapped.
        os.pwrite(file, struct.pack("=q", seconds), 0)
    finally:
        os.close(file)
    told = await asyncio.to_thread(_told)
    if abs(told - time.time() - seconds) > _AGREES:
        raise AssertionError(f"llmuxd's clock is {told - time.time():.0f} s off, not {seconds}")


def _told() -> float:
    """What time it is for llmuxd."""
    # Answers within one second share their Date: the next one's is new.
    time.sleep(1.1)
    with urllib.request.urlopen("http://127.0.0.1:4000/v1/models", timeout=30) as answer:
        return email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
