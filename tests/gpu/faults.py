# SPDX-License-Identifier: MIT
"""The plan's steps in which something is taken away, killed, or filled by somebody else."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmuxd import names
from tests.machine.ring import guest
from tests.machine.ring.guest import OPT, QWEN, sh

from . import foreign, measure
from .measure import MODELS, Refused, ask, configure
from .plan import Notes
from .switches import free, settle, states, told

PLUGIN = Path("/usr/lib/criu/cuda_plugin.so")
_PROGRAM = Path("/usr/libexec/llmux/bin/cuda-checkpoint")
_METER = ("llmux-gpus.socket", "llmux-gpus.service")
_CDI = Path("/etc/cdi/nvidia.yaml")
_LIBRARIES = Path("/etc/ld.so.conf.d/nvidia.conf")
# Of the other program; what it leaves is too little for one model.
_LEFT_GIB = 10
_RED = ("warn", "fail")


def check(notes: Notes) -> None:
    """Every line of llmuxctl check about the GPU: ok, and red when its thing is taken away."""
    configure()
    notes.add("check", lines=_check(guest.CONFIG))
    if not measure.HAS_GPU:
        return
    usual, sized = _file(), _file(vram="24GiB")
    # podman's seccomp profile keeps containers from io_uring, too.
    free = _file(podman_args=["--security-opt=seccomp=unconfined"])
    for name, line, config, away in (
        ("CRIU's plugin", "cuda plugin", usual, _moved(PLUGIN)),
        ("the CDI file", "devices", usual, _moved(_CDI)),
        ("libcuda in ld.so's cache", "libcuda", usual, _without_libcuda()),
        ("seccomp and the sysctl", "io_uring", free, _sysctl("kernel.io_uring_disabled", "0", "2")),
        ("the driver", "driver", usual, _hidden(Path("/proc/driver/nvidia/version"))),
        ("cuda-checkpoint's --action", "cuda-checkpoint", usual, _broken(_PROGRAM)),
        ("a second GPU, by CDI", "devices", _file(gpus=[1], devices=["nvidia.com/gpu=1"]), None),
        ("a second GPU", "gpus", _file(gpus=[1]), None),
        ("a GPU of 999 GiB", "vram", _file(vram="999GiB"), None),
        ("who measures the GPU", "vram", sized, _stopped(*_METER)),
    ):
        with away or contextlib.nullcontext():
            now = _check(config).get(line, "no such line")
        notes.add("check, taken away", gone=name, line=line, red=now.startswith(_RED), now=now)
    configure(vram="24GiB")
    told(notes, "before", QWEN)
    after = _check(guest.CONFIG)
    notes.add("check, measured", now=after["vram"])
    notes.add("check, all back", lines={k: v for k, v in after.items() if not v.startswith("ok")})


def _check(config: Path) -> dict[str, str]:
    done = subprocess.run(
        ["llmuxctl", "check", "--json", "-c", str(config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    rows = json.loads(done.stdout)
    return {row["name"]: f"{row['status']}: {row['text']}: {row['hint']}" for row in rows}


def _file(**more: Any) -> Path:
    """A configuration to be checked; without `devices` they follow from `gpus`."""
    models = {name: measure.model(name) for name in MODELS}
    for model in models.values():
        del model["devices"]
        model.update(more)
    path = Path(f"/run/llmux-check-{len(list(Path('/run').glob('llmux-check-*')))}.yaml")
    path.write_text(json.dumps({"models": models}))
    return path


@contextmanager
def _stopped(*units: str) -> Iterator[None]:
    sh("systemctl", "stop", *units)
    try:
        yield
    finally:
        sh("systemctl", "start", units[0])


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
    with contextlib.suppress(AssertionError):
        settle("checkpointed")
    notes.add(
        "after", vram_before_MiB=before, vram_MiB=measure.vram(), states=states(), left=_stray()
    )


def killed_engine(notes: Notes) -> None:
    """The engine of a parked model is killed."""
    configure(tier="park")
    free(notes)
    told(notes, "before", QWEN)
    alone = measure.vram()
    told(notes, "before", OPT)
    settle("parked")
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
    with foreign.hog(measure.total_vram() / 1024 - _LEFT_GIB):
        notes.add("foreign", vram_MiB=measure.vram())
        notes.add("asked meanwhile", **_refused(OPT))
    notes.add("foreign gone", vram_MiB=measure.vram(), empty_MiB=empty)
    told(notes, "asked again", QWEN)
    # After two failures llmuxd says when it tries again.
    pause = _refused(OPT)
    notes.add("asked in its cool-down", **pause)
    time.sleep(float(pause["retry_after"]))
    told(notes, "asked again", OPT)


def _refused(name: str) -> dict[str, Any]:
    begin = time.monotonic()
    try:
        ask(name, timeout=150)
    except Refused as error:
        seconds = time.monotonic() - begin
        return {"seconds": seconds, "said": str(error), "retry_after": error.retry_after}
    return {"seconds": time.monotonic() - begin, "said": "an answer", "retry_after": 0.0}


def no_cuda_part(notes: Notes) -> None:
    """CRIU's plugin is away while a checkpoint is written, then while one is restored."""
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
    sh("llmuxctl", "checkpoint", OPT, timeout=120)
    since = time.time()
    with _moved(PLUGIN):
        _pretend(OPT, plugin="")
        told(notes, "restored without the plugin", OPT)
    notes.add("so it said", log=measure.said(OPT, since)[-4:], vram_MiB=measure.vram())


def _pretend(name: str, **identity: str) -> None:
    """Have the record say that the image was taken on a host that is as this one is now."""
    path = guest.CHECKPOINTS / f"{names.slug(name)}.json"
    record = json.loads(path.read_text())
    record["identity"] |= identity
    path.write_text(json.dumps(record))


def _stray() -> list[str]:
    """Containers that run without a unit of theirs."""
    running = sh("podman", "ps", "--format", "{{.Names}}").splitlines()
    wanted = {
        names.container(name) for name in MODELS if guest.state(name) in ("serving", "parked")
    }
    return sorted(set(running) - wanted)
