# SPDX-License-Identifier: MIT
"""A program that is none of llmuxd's and takes the GPU's memory."""

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def hog(gib: float) -> Iterator[None]:
    """It holds so much until the end of the block."""
    command = [sys.executable, "-u", "-m", __name__, str(int(gib))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        try:
            told = running.stdout.readline()
            if told != b"[0, 0, 0, 0]\n":
                raise RuntimeError(f"it does not get {gib:.0f} GiB: {told!r}")
            yield
        finally:
            running.kill()


def _hold(gib: int) -> None:
    """Take it with cuMemAlloc, until the standard input ends."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, address = ctypes.c_void_p(), ctypes.c_uint64()
    steps: tuple[Callable[[], int], ...] = (
        lambda: int(cuda.cuInit(0)),
        lambda: int(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)),
        lambda: int(cuda.cuCtxSetCurrent(context)),
        lambda: int(cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(gib << 30))),
    )
    print([step() for step in steps], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _hold(int(sys.argv[1]))
