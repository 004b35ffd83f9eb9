# SPDX-License-Identifier: MIT
"""The CUDA service of one CRIU run: answers what CRIU's plugin calls cuda-checkpoint for.

A process of its own, which llmux-model starts before podman and ends after it (cuda_standby.py).
It loads the driver once, where each call of the program would, and for a restore initializes it at
once: that takes 0.2 to 0.7 s, while podman and CRIU read memory, and keeps the GPU initialized.
Whoever calls the program in the unit is answered by its own code (cuda_checkpoint.py). Where the
driver is not to be had this process just ends, and the program says so by itself.

It starts no other process: podman would miss that as it moves those of the unit (starting.py).
"""

import os
import socket
import sys
import threading

from . import cuda_asking, cuda_checkpoint, gpu


def main() -> None:
    """Entry point: `SOCKET [initialize]`, where SOCKET is the descriptor that it listens at."""
    listening = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    serve(listening, initialize=cuda_asking.INITIALIZE in sys.argv[2:])
    # The driver's own end would wait for what is under way in it.
    os._exit(0)


def serve(listening: socket.socket, *, initialize: bool) -> None:
    """Answer each question in a thread of its own: a call into the driver may hang for good.

    It returns where there is no driver.
    """
    try:
        driver = gpu.Driver()
    except gpu.NoDriver:
        return
    if initialize:
        threading.Thread(target=_initialize, args=(driver,), daemon=True).start()
    while True:
        asking, _ = listening.accept()
        threading.Thread(target=_attend, args=(asking, driver), daemon=True).start()


def _end_with(helper: int) -> None:
    """Nothing is ever written to that pipe: it ends with the helper, however that ends."""
    os.read(helper, 1)
    os._exit(0)


def _initialize(driver: gpu.Driver) -> None:
    try:
        driver.initialize(0)
    except gpu.CudaError:
        # It may be otherwise once the restore is due, for a process that has not tried yet.
        os._exit(1)


def _attend(asking: socket.socket, driver: gpu.Driver) -> None:
    with asking:
        try:
            asking.settimeout(cuda_asking.HEAR_LIMIT)
            words = cuda_asking.unpacked(cuda_asking.receive(asking))
            if words is None:
                return
            asking.sendall(cuda_asking.HEARD)
            name, *argv = words
            answer = cuda_checkpoint.answer(argv, name, lambda: driver)
            asking.sendall(cuda_asking.packed_answer(answer))
        except (OSError, ValueError):
            # Whoever asked is gone, or gets no answer and does it without.
            return
