# SPDX-License-Identifier: MIT
"""The plan's steps in which something is taken away, killed, or filled by somebody else."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmuxd import names
from tests.machine.ring import guest
from tests.machine.ring.guest import OPT, QWEN, sh

from . import measure
from .measure import MODELS, ask, configure
from .plan import Notes
from .switches import told

PLUGIN = Path("/usr/lib/criu/cuda_plugin.so")
_CDI = Path("/etc/cdi/nvidia.yaml")
_LIBRARIES = Path("/etc/ld.so.conf.d/nvidia.conf")
_HOG_GIB = 70


def check(notes: Notes) -> None:
    """Every line of llmuxctl check about the GPU: ok, and red when its thing is taken away."""
    configure()
    notes.add("check", lines=_check())
    if not measure.HAS_GPU:
        return
    for line, away in (
        ("cuda plugin", _moved(PLUGIN)),
        ("devices", _moved(_CDI)),
        ("libcuda", _without_libcuda()),
        ("io_uring", _sysctl("kernel.io_uring_disabled", "0", "2")),
        ("driver", _hidden(Path("/proc/driver/nvidia/version"))),
        ("cuda-checkpoint", _broken(Path("/usr/libexec/llmux/bin/cuda-checkpoint"))),
    ):
        with away:
            notes.add("check, taken away", line=line, now=_check().get(line, "no such line"))
    configure(gpus=[1], devices=["nvidia.com/gpu=1"])
    notes.add("check, taken away", line="GPU 1 in CDI", now=_check().get("devices"))
    configure(gpus=[1], devices=None)
    notes.add("check, taken away", line="GPU 1", now=_check().get("gpus"))
    configure(vram="24GiB")
    told(notes, "before", QWEN)
    notes.add("check, measured", line="vram", now=_check().get("vram"))
    configure(vram="200GiB")
    notes.add("check, taken away", line="a GPU of 200 GiB", now=_check().get("vram"))
    configure()
    after = _check()
    notes.add("check, all back", lines={k: v for k, v in after.items() if not v.startswith("ok")})


def _check() -> dict[str, str]:
    done = subprocess.run(
        ["llmuxctl", "check", "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    rows = json.loads(done.stdout)
    return {row["name"]: f"{row['status']}: {row['text']}: {row['hint']}" for row in rows}


@contextmanager
def _moved(path: Path) -> Iterator[None]:
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@contextmanager
def _without_libcuda() -> Iterator[None]:
    with _moved(_LIBRARIES):
        sh("ldconfig")
        yield
    sh("ldconfig")


@contextmanager
def _sysctl(name: str, value: str, before: str) -> Iterator[None]:
    sh("sysctl", "-q", "-w", f"{name}={value}")
    try:
        yield
    finally:
        sh("sysctl", "-q", "-w", f"{name}={before}")


@contextmanager
def _hidden(path: Path) -> Iterator[None]:
    sh("mount", "--bind", "/dev/null", str(path))
    try:
        yield
    finally:
        sh("umount", str(path))


@contextmanager
def _broken(path: Path) -> Iterator[None]:
    """A program that has not what is asked of it, as an old cuda-checkpoint has not."""
    with _moved(path):
        path.write_text("#!/bin/sh\necho usage: --toggle --pid\n")
        path.chmod(0o755)
        try:
            yield
        finally:
            path.unlink()


def killed_llmuxd(notes: Notes) -> None:
    """llmuxd is killed while one model leaves and the other comes."""
    configure()
    measure.leave(QWEN)
    told(notes, "before", OPT)
    before = measure.vram()
    lost: list[str] = []

    def request() -> None:
        try:
            ask(QWEN)
        except (OSError, RuntimeError, ValueError) as error:
            lost.append(f"{type(error).__name__}: {error}")

    client = threading.Thread(target=request)
    client.start()
    guest.eventually(
        lambda: sh("systemctl", "is-active", names.unit(QWEN), check=False) == "activating",
        "the switch has begun", 30,
    )  # fmt: skip
    pid = int(sh("systemctl", "show", "-P", "MainPID", "llmuxd.service"))
    os.kill(pid, signal.SIGKILL)
    client.join(60)
    notes.add("llmuxd killed in mid-switch", client=lost)
    told(notes, "asked again", QWEN)
    told(notes, "the other", OPT)
    notes.add("after", vram_before_MiB=before, vram_MiB=measure.vram(), left=_stray())


def killed_engine(notes: Notes) -> None:
    """The engine of a parked model is killed."""
    configure(tier="park")
    told(notes, "before", QWEN)
    alone = measure.vram()
    told(notes, "before", OPT)
    pid = int(sh("podman", "inspect", "--format", "{{.State.Pid}}", names.container(QWEN)))
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    state = ""
    with contextlib.suppress(AssertionError):
        guest.eventually(
            lambda: guest.state(QWEN) not in ("parked", "serving"), "llmuxd has noticed", 20
        )
        state = guest.state(QWEN)
    notes.add(
        "engine killed while parked", seconds=time.monotonic() - begin,
        state=state or guest.state(QWEN), vram_MiB=measure.vram(), ram_GiB=measure.ram(QWEN),
    )  # fmt: skip
    told(notes, "asked again", QWEN)
    sh("llmuxctl", "checkpoint", OPT, timeout=120)
    notes.add("after", vram_alone_MiB=alone, vram_MiB=measure.vram(), left=_stray())


def full_gpu(notes: Notes) -> None:
    """Another program takes the GPU's memory: a clear refusal; it goes, and all is well."""
    if not measure.HAS_GPU:
        return
    configure()
    for name in MODELS:
        told(notes, "before", name)
    for name in MODELS:
        sh("llmuxctl", "checkpoint", name, timeout=120)
    empty = measure.vram()
    with _hog():
        notes.add("foreign", vram_MiB=measure.vram())
        begin = time.monotonic()
        try:
            ask(QWEN, timeout=90)
            said = "an answer"
        except (OSError, RuntimeError) as error:
            said = str(error)
        notes.add("asked meanwhile", seconds=time.monotonic() - begin, said=said)
    notes.add("foreign gone", vram_MiB=measure.vram(), empty_MiB=empty)
    told(notes, "asked again", OPT)
    told(notes, "asked again", QWEN)


def no_cuda_part(notes: Notes) -> None:
    """CRIU's plugin is away while a checkpoint is written: no image may pretend to be one."""
    if not measure.HAS_GPU:
        return
    configure(snapshot="live")
    told(notes, "before", OPT)
    since = time.time()
    with _moved(PLUGIN):
        done = subprocess.run(
            ["llmuxctl", "checkpoint", OPT], capture_output=True, text=True, timeout=100,
            check=False,
        )  # fmt: skip
        record = guest.record(OPT)
    notes.add(
        "checkpoint without the plugin", status=done.returncode, said=done.stderr.strip(),
        invalid=record["invalid"], vram_MiB=measure.vram(),
        log=measure.said(OPT, since)[-4:],
    )  # fmt: skip
    told(notes, "asked again", OPT)


@contextmanager
def _hog() -> Iterator[None]:
    """A process that holds most of the GPU's memory."""
    command = [sys.executable, "-u", "-m", f"{__package__}.faults"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hog:
        assert hog.stdout is not None
        hog.stdout.readline()
        try:
            yield
        finally:
            hog.kill()


def _hold() -> None:
    """Take _HOG_GIB with cuMemAlloc until the standard input ends."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, address = ctypes.c_void_p(), ctypes.c_uint64()
    steps: tuple[Callable[[], int], ...] = (
        lambda: int(cuda.cuInit(0)),
        lambda: int(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)),
        lambda: int(cuda.cuCtxSetCurrent(context)),
        lambda: int(cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(_HOG_GIB << 30))),
    )
    print([step() for step in steps], flush=True)
    sys.stdin.read()


def _stray() -> list[str]:
    """Containers that run without a unit of theirs."""
    running = sh("podman", "ps", "--format", "{{.Names}}").splitlines()
    wanted = {
        names.container(name) for name in MODELS if guest.state(name) in ("serving", "parked")
    }
    return sorted(set(running) - wanted)


if __name__ == "__main__":
    _hold()
