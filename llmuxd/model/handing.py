# SPDX-License-Identifier: MIT
"""llmux-model's quick way: a unit's stop is handed to the helper that stayed in it (resident.py).

That one has all loaded that a stop needs. To load it anew takes 0.1 s on an idle host and 0.3 s on
a busy one, for ExecStop and once more for ExecStopPost, while somebody may wait for the GPU, or for
this very model. So nothing is imported here but what it takes to ask, and whatever is not as usual
is left to the whole program: no helper, one of another release, a stop that failed, one that left
something to clean up.
"""

# socket.py would take 4 ms more, for names that nobody needs here.
import _socket
import gc
import os
import sys

from .. import __version__, hold, run_files
from ..errors import InvalidName
from ..names import unescape
from . import dot_control

DONE = "done"
# From a container's end to that of its helper.
END_LIMIT = 2.0
# A stop that takes longer is a dump, and may be killed in the middle.
QUICK = 0.5


def main() -> int:
    """Entry point of llmux-model; the exit status is that of __main__.main."""
    status = None
    match sys.argv[1:]:
        case ["stop", "--", instance]:
            status = hand_over(instance)
        case ["clean-up", "--", instance]:
            status = 0 if clean_up(instance) else None
        case ["reload", *_]:
            dot_control.leave()
        case _:
            pass
    if status is not None:
        return status
    # What is loaded is kept, and looking through it for what is not takes a quarter of the time.
    gc.disable()
    if sys.argv[1:2] == ["start"]:
        from . import later

        later.put_off()
    from .__main__ import main as whole

    return whole()


def hand_over(instance: str) -> int | None:
    """The exit status of the stop by the helper in the unit; None where it does not take it.

    It has no time limit: the unit has one, and its helper ends with it. Of one that is done it
    waits for the helper's end, so that systemd finds nothing to kill. One that died in the middle
    has left what no other stop should touch: systemd ends the unit, and its clean-up sees to it.
    """
    asking = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        asking.connect(run_files.path(unescape(instance), run_files.SOCKET))
        asking.sendall(f"stop {__version__}\n".encode())
        answer = _answer(asking)
        if answer == DONE:
            _wait_for_end(asking)
            return 0
        return None if answer else 1
    except (OSError, InvalidName):
        dot_control.leave()
        return None
    finally:
        asking.close()


def _answer(asking: _socket.socket) -> str:
    asking.settimeout(QUICK)
    try:
        try:
            told = asking.recv(256)
        except TimeoutError:
            # Not before: for 10 ms the kernel lets nobody fork meanwhile, the helper neither.
            dot_control.leave()
            asking.settimeout(None)
            told = asking.recv(256)
    except ConnectionResetError:
        return ""
    return told.decode(errors="replace").strip()


def _wait_for_end(asking: _socket.socket) -> None:
    asking.settimeout(END_LIMIT)
    try:
        asking.recv(1)
    except OSError:
        # It stays for longer, or it was killed.
        return


def clean_up(instance: str) -> bool:
    """Forget the run where its stop kept a good image; False where more is to be done.

    Of a start that was held back to its end nothing is left but, perhaps, what it waited for.
    """
    try:
        if run_files.take_clean():
            return True
        model = unescape(instance)
        if hold.remains(model):
            hold.forget(model)
            if not os.path.exists(run_files.path(model, run_files.PLACE)):
                return True
        with open(run_files.path(model, run_files.STOPPING), "rb") as mark:
            kept = mark.read() == run_files.KEPT
        if kept:
            run_files.forget(model)
    except (OSError, InvalidName):
        return False
    return kept
