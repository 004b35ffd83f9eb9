# SPDX-License-Identifier: MIT
"""The plan's step of llmuxctl check: each thing that it tells of a GPU host is taken away once."""

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.machine.ring import guest
from tests.machine.ring.guest import QWEN

from . import away, measure
from .measure import MODELS, configure
from .plan import Notes
from .switches import told

_PROGRAM = Path("/usr/libexec/llmux/bin/cuda-checkpoint")
_METER = ("llmux-gpus.socket", "llmux-gpus.service")
_CDI = Path("/etc/cdi/nvidia.yaml")
_IO_URING = ("kernel.io_uring_disabled", "0", "2")
_RED = ("warn", "fail")


def check(notes: Notes) -> None:
    """Every line of llmuxctl check about the GPU: ok, and red when its thing is taken away."""
    configure()
    notes.add("check", lines=_check(guest.CONFIG))
    if not measure.HAS_GPU:
        return
    usual, sized = _file(), _file(vram=measure.NEED)
    # podman's seccomp profile keeps containers from io_uring, too.
    free = _file(podman_args=["--security-opt=seccomp=unconfined"])
    for name, line, config, taken in (
        ("CRIU's plugin", "cuda plugin", usual, away.moved(away.PLUGIN)),
        ("the CDI file", "devices", usual, away.moved(_CDI)),
        ("libcuda in ld.so's cache", "libcuda", usual, away.without_libcuda()),
        ("seccomp and the sysctl", "io_uring", free, away.sysctl(*_IO_URING)),
        ("the driver", "driver", usual, away.hidden(Path("/proc/driver/nvidia/version"))),
        ("cuda-checkpoint's --action", "cuda-checkpoint", usual, away.broken(_PROGRAM)),
        ("a second GPU, by CDI", "devices", _file(gpus=[1], devices=["nvidia.com/gpu=1"]), None),
        ("a second GPU", "gpus", _file(gpus=[1]), None),
        ("a GPU of 999 GiB", "vram", _file(vram="999GiB"), None),
        ("who measures the GPU", "vram", sized, away.stopped(*_METER)),
    ):
        with taken or contextlib.nullcontext():
            now = _check(config).get(line, "no such line")
        notes.add("check, taken away", gone=name, line=line, red=now.startswith(_RED), now=now)
    configure(vram=measure.NEED)
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
