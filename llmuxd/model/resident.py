# SPDX-License-Identifier: MIT
"""What stays of a model's start: a process that parks it, brings it back and stops it, when asked.

A helper that is started for each park and each wake takes 0.1 s to load Python and what it
imports, twice in a switch of 0.2 s; for a stop that is as long (handing.py). This one has it all
loaded, and forks: whatever a park does to its process (CUDA's driver is loaded into it) ends with
that. It listens at a socket that only root may use, answers each verb with one line, and ends with
the container.
"""

import contextlib
import gc
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from .. import loggers
from . import cgroup
from .activation import socket_path
from .handing import DONE

log = loggers.named("llmux-model")

# Who asks says a verb at once; whoever does not must not hold up the next one.
HEAR_LIMIT = 1.0
# A child is kept as a zombie for so long: journald looks up by its PID whose unit its lines are.
LINGER = 1.0

Act = Callable[[str], str]


@dataclass(frozen=True)
class Watched:
    """What the model ends with: its container's conmon, and who is `bound` to stay.

    In a frozen container nobody ends by himself, and conmon hears nothing of one who is killed,
    for his parent cannot reap him. `broken` is called then.
    """

    conmon: int
    bound: Callable[[], list[int]] = list
    broken: Callable[[], None] = lambda: None


def listen(model: str) -> socket.socket:
    """The socket to be asked at: who asks before `stay` waits for it."""
    path = socket_path(model)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    path.chmod(0o600)
    listening.listen()
    return listening


def apart(work: Callable[[], None], listening: socket.socket) -> None:
    """Do what nobody waits for in a process of its own, which `stay` does not wait for either."""
    child = os.fork()
    if child != 0:
        os.waitpid(child, 0)
        return
    try:
        if os.fork() == 0:
            listening.close()
            work()
            time.sleep(LINGER)
    except Exception:
        log.exception("a bug")
    finally:
        os._exit(0)


def stay(model: str, listening: socket.socket, watched: Watched, act: Act) -> None:
    """Answer until conmon ends. `act` does what a verb says, and returns the line to answer."""
    # What is loaded now is shared with every child for as long as nobody writes to it.
    gc.freeze()
    with listening, contextlib.suppress(ProcessLookupError):
        conmon = os.pidfd_open(watched.conmon)
        poll = select.poll()
        poll.register(listening, select.POLLIN)
        poll.register(conmon, select.POLLIN)
        children: list[int] = []
        bound: list[int] = []
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(LINGER * 1000 if children else None)}
            while children:
                os.waitpid(children.pop(), 0)
            if conmon in ready:
                break
            verb = ""
            if listening.fileno() in ready:
                with contextlib.suppress(OSError):
                    verb, asked = _answer(listening, act)
                    children += asked
            if ready:
                # Of one that is parked anew, they were its running self's.
                before = [] if verb.startswith("park") else bound
                bound = _watch(poll, bound, _bound(watched, before))
    socket_path(model).unlink(missing_ok=True)


def _bound(watched: Watched, before: list[int]) -> list[int]:
    """Who is bound to stay from here on; those of `before` were until now."""
    try:
        processes = watched.bound()
        # Not sooner: whoever ends now is among them still.
        if _any_ended(before):
            watched.broken()
            processes = watched.bound()
        return processes
    except Exception:
        # It goes on: nobody else parks the model, or brings it back, as soon.
        log.exception("a bug")
        return []


def _any_ended(bound: list[int]) -> bool:
    """Whether one of them has since they were last asked for."""
    poll = select.poll()
    for descriptor in bound:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _watch(poll: select.poll, before: list[int], processes: list[int]) -> list[int]:
    """Watch these, and not those any more; what they are watched by."""
    for descriptor in before:
        poll.unregister(descriptor)
        os.close(descriptor)
    watched = []
    for process in processes:
        with contextlib.suppress(OSError):
            watched.append(os.pidfd_open(process))
            poll.register(watched[-1], select.POLLIN)
    return watched


def _answer(listening: socket.socket, act: Act) -> tuple[str, list[int]]:
    """One question: its verb, and the child that did it, which has ended and is a process still."""
    asking, _ = listening.accept()
    with contextlib.ExitStack() as closed:
        closed.enter_context(asking)
        try:
            asking.settimeout(HEAR_LIMIT)
            verb = asking.recv(64).decode(errors="replace").strip()
            if not verb:
                return "", []
            who = _who(asking)
            child = os.fork()
        except OSError as error:
            # Nothing of it was begun: without a word it would seem to have died in the middle.
            with contextlib.suppress(OSError):
                asking.sendall(f"failed: {error}\n".encode())
            return "", []
        if child == 0:
            listening.close()
            # A stop whose dump is given up on kills the rest of the unit: were it who asked too,
            # systemd would end the unit in the middle of what is left to do.
            cgroup.spare(os.getppid(), who)
            _act(asking, verb, act)
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        if verb.startswith("stop") and ended is not None and ended.si_status == 0:
            # Its end tells who asked that this process has ended too, with the container.
            closed.pop_all()
            asking.detach()
    return verb, [child]


def _who(asking: socket.socket) -> int:
    """The process that asks."""
    told = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", told)[0]
    return pid


def _act(asking: socket.socket, verb: str, act: Act) -> None:
    """The child: nothing of it may return to the loop. Its status is 0 where it did as asked."""
    status = 1
    try:
        answer = act(verb)
        asking.sendall(f"{answer}\n".encode())
        status = 0 if answer == DONE else 1
    except Exception:
        log.exception("%s: a bug", verb)
    finally:
        os._exit(status)
