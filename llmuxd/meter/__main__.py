# SPDX-License-Identifier: MIT
"""llmux-gpus: measures the GPUs' memory for who connects to the socket that systemd passes."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys

import sdnotify

from .. import journal, listening
from .meter import Meter

log = logging.getLogger("llmux-gpus")


def main() -> int:
    """Entry point; exit status 1 where systemd passed no socket."""
    journal.set_up(verbose=False)
    sockets = listening.passed()
    if not sockets:
        log.error("systemd passed no socket (see 'systemctl status llmux-gpus.socket')")
        return 1
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_run(sockets[0]))
    return 0


async def _run(sock: socket.socket) -> None:
    notify = sdnotify.SystemdNotifier().notify
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    notify("READY=1")
    await Meter(lambda text: notify(f"STATUS={text}")).serve(sock)


if __name__ == "__main__":
    sys.exit(main())
