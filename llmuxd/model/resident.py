# SPDX-License-Identifier: MIT
"""What stays of a model's start: a process that parks the model, and brings it back, when asked.

A helper that is started for each park and each wake takes 0.1 s to load Python and what it
imports, twice in a switch of 0.2 s. This one has it all loaded, and forks: whatever a park does to
its process (CUDA's driver is loaded into it) ends with that. It listens at a socket that only root
may use, answers each verb with one line, and ends with the container.
"""

import contextlib
import gc
import logging
import os
import select
import socket
from collections.abc import Callable

from .activation import socket_path

log = logging.getLogger("llmux-model")

# Who asks says a verb at once; whoever does not must not hold up the next one.
HEAR_LIMIT = 1.0
# A child is kept as a zombie for so long: journald looks up by its PID whose unit its lines are.
LINGER = 1.0

Act = Callable[[str], str]


def stay(model: str, conmon: int, act: Act) -> None:
    """Answer until conmon ends. `act` does what a verb says, and returns the line to answer."""
    path = socket_path(model)
    path.unlink(missing_ok=True)
    try:
        pidfd = os.pidfd_open(conmon)
    except ProcessLookupError:
        return
    # What is loaded now is shared with every child for as long as nobody writes to it.
    gc.freeze()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen()
        poll = select.poll()
        poll.register(listening, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        children: list[int] = []
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(LINGER * 1000 if children else None)]
            while children:
                os.waitpid(children.pop(), 0)
            if pidfd in ready:
                break
            if ready:
                with contextlib.suppress(OSError):
                    children += _answer(listening, act)
    path.unlink(missing_ok=True)


def _answer(listening: socket.socket, act: Act) -> list[int]:
    """One question: a child does what it asks, and has ended, but is a process still."""
    asking, _ = listening.accept()
    with asking:
        asking.settimeout(HEAR_LIMIT)
        verb = asking.recv(64).decode(errors="replace").strip()
        if not verb:
            return []
        child = os.fork()
        if child == 0:
            listening.close()
            _act(asking, verb, act)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    return [child]


def _act(asking: socket.socket, verb: str, act: Act) -> None:
    """The child: nothing of it may return to the loop."""
    status = 1
    try:
        asking.sendall(f"{act(verb)}\n".encode())
        status = 0
    except Exception:
        log.exception("%s: a bug", verb)
    finally:
        os._exit(status)
