# SPDX-License-Identifier: MIT
"""llmux-cuda-checkpoint's quick way: while CRIU runs, its model's CUDA service is asked.

CRIU's plugin executes this program for each process of a container and for each step, dozens of
times a dump, one after the other. The service (cuda_service.py) has all loaded, the driver and the
GPU initialized. So nothing is imported here but what it takes to ask, and whatever is not as usual
is left to the whole program (cuda_checkpoint.py): no service, one of another release, one that went
away in the middle.
"""

# socket.py would take longer than all the rest.
import _socket
import os
import sys

from .. import __version__, run_files
from ..names import from_unit

# The exit status, and the texts for standard output and standard error.
Answer = tuple[int, str, str]

# podman hands nothing of a unit's environment on to CRIU but PATH, but leaves CRIU in its cgroup.
CGROUP = "/proc/self/cgroup"
# In seconds. The service may just be starting; what is asked of it has limits of its own.
HEAR_LIMIT = 5.0
# What the service says first, before it does what it heard.
HEARD = b"+"
# In bytes, of a question or an answer.
LONGEST = 1 << 20
# An argument of the service: it is for a restore.
INITIALIZE = "initialize"


def main() -> int:
    """Entry point; the exit status is that of cuda_checkpoint.main."""
    told = ask(sys.argv)
    if told is not None:
        # Python's own end would take as long as the question and its answer.
        os._exit(tell(told))
    from .cuda_checkpoint import main as whole

    return whole()


def ask(argv: list[str]) -> Answer | None:
    """What the service of this process's model says; None where there is none to be had."""
    try:
        model = _model()
        return None if model is None else _ask(run_files.path(model, run_files.CUDA), argv)
    except (OSError, ValueError):
        return None


def tell(answer: Answer) -> int:
    """Print it, as CRIU's log then has it; the exit status."""
    status, output, error = answer
    for stream, text in ((sys.stderr, error), (sys.stdout, output)):
        stream.write(text)
        stream.flush()
    return status


def name_of(program: str) -> str:
    """As it was called: CRIU's log then reads as with NVIDIA's."""
    return program.rpartition("/")[2]


def packed(argv: list[str]) -> bytes:
    """A command line, as the service is sent it."""
    return "\0".join([__version__, name_of(argv[0]), *argv[1:]]).encode(errors="surrogateescape")


def unpacked(question: bytes) -> list[str] | None:
    """The program's name and its arguments; None where they come from another release."""
    version, *words = question.decode(errors="surrogateescape").split("\0")
    return words if words and version == __version__ else None


def packed_answer(answer: Answer) -> bytes:
    """An answer, as the service sends it."""
    status, *texts = answer
    output, error = (text.encode(errors="surrogateescape") for text in texts)
    return f"{status} {len(output)} {len(error)}\n".encode() + output + error


def unpacked_answer(raw: bytes) -> Answer:
    """ValueError where it is not all there."""
    head, _, body = raw.partition(b"\n")
    status, *sizes = (int(word) for word in head.split())
    output_size, error_size = sizes
    if len(body) != output_size + error_size:
        raise ValueError("it was cut off")
    texts = body[:output_size], body[output_size:]
    output, error = (text.decode(errors="surrogateescape") for text in texts)
    return status, output, error


def receive(connection: _socket.socket) -> bytes:
    """All that comes until the other side ends; ValueError where that is too much."""
    whole = b""
    while part := connection.recv(65536):
        whole += part
        if len(whole) > LONGEST:
            raise ValueError("it is too long")
    return whole


def _model() -> str | None:
    """The model in whose unit this process runs."""
    with open(CGROUP, encoding="utf-8") as lines:
        for line in lines:
            hierarchy, _, path = line.rstrip("\n").split(":", 2)
            if hierarchy == "0":
                found = (from_unit(part) for part in path.split("/"))
                return next(filter(None, found), None)
    return None


def _ask(path: str, argv: list[str]) -> Answer | None:
    asking = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        asking.settimeout(HEAR_LIMIT)
        asking.connect(path)
        asking.sendall(packed(argv))
        asking.shutdown(_socket.SHUT_WR)
        if asking.recv(len(HEARD)) != HEARD:
            return None
        asking.settimeout(None)
        return unpacked_answer(receive(asking))
    finally:
        asking.close()
