# SPDX-License-Identifier: MIT
"""Has a CUDA service (cuda_service.py) at hand for as long as CRIU runs.

A program that is executed, not just a fork: of what this process has open it inherits nothing but
its socket, so that it holds no lock of the model, and of its threads none in the middle of an
import. Without the service all works as well, only later; so its absence is no error.
"""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from .. import loggers, run_files
from .cuda_asking import INITIALIZE
from .meanwhile import ask

log = loggers.named("llmux-model")

_TOP = Path(__file__).parents[2]
# Isolated, and without the search for packages: it needs this one, and no other.
_PYTHON = ("-I", "-S", "-c")
_CODE = """\
import sys
sys.path.append(sys.argv.pop(1))
from llmuxd.model.cuda_service import main
main()
"""


@contextlib.contextmanager
def standing_by(
    model: str, devices: Collection[str], *, initialize: bool = False
) -> Iterator[None]:
    """A service for this model, whose container has these `devices`; none where it has none.

    It is there before podman is, which must not miss a process that begins (starting.py).
    `initialize`: a restore is to come.
    """
    path = Path(run_files.path(model, run_files.CUDA))
    service = None
    if devices:
        try:
            service = _begin(path, initialize)
        except OSError as error:
            log.debug("no CUDA service: %s", error)
    try:
        yield
    finally:
        if service is not None:
            _end(service, path)


def _begin(path: Path, initialize: bool) -> subprocess.Popen[bytes]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        # From here on whoever connects waits for the service, or is refused at its end.
        listening.listen()
        words = [INITIALIZE] if initialize else []
        return subprocess.Popen(
            [sys.executable, *_PYTHON, _CODE, str(_TOP), str(listening.fileno()), *words],
            # It ends when nobody has the other end any more.
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
        )


def _end(service: subprocess.Popen[bytes], path: Path) -> None:
    path.unlink(missing_ok=True)
    # It may be in the middle of a call that does not end.
    service.kill()
    assert service.stdin is not None
    service.stdin.close()
    # To let go of a GPU takes it a moment, for which nobody has to wait.
    ask(service.wait)
