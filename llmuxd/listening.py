# SPDX-License-Identifier: MIT
"""The sockets that systemd passed, as sd_listen_fds(3) has it.

Not by pystemd, which llmuxd imports only in the process that calls PID 1: it brings a parser for
XML along, and with it 5 MB of memory.
"""

import os
import socket

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")


def passed() -> list[socket.socket]:
    """These, once: neither a second call nor a child has them. None that are another process's."""
    told = {name: os.environ.pop(name, "") for name in _VARIABLES}
    if told["LISTEN_PID"] != str(os.getpid()) or not told["LISTEN_FDS"].isdecimal():
        return []
    numbers = range(_FIRST, _FIRST + int(told["LISTEN_FDS"]))
    for number in numbers:
        os.set_inheritable(number, False)
    return [socket.socket(fileno=number) for number in numbers]
