# SPDX-License-Identifier: MIT
"""The plan's steps in which llmuxd or an engine is killed, or CRIU's plugin is away."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import Any

from llmuxd import names
from llmuxd.model import cgroup
from tests.machine.ring import guest
from tests.machine.ring.guest import OPT, QWEN, sh

from . import away, measure
from .measure import MODELS, ask
from .plan import Notes
from .switches import free, ready, settle, states, told


def killed_llmuxd(notes: Notes) -> None:
    """llmuxd is killed while one model leaves and the other comes."""
    ready(notes)
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
    begin = time.monotonic()
    with contextlib.suppress(AssertionError):
        settle("checkpointed")
    notes.add("the one that was to leave", seconds=time.monotonic() - begin, states=states())
    told(notes, "the other", OPT)
    with contextlib.suppress(AssertionError):
        settle("checkpointed")
    notes.add(
        "after", vram_before_MiB=before, vram_MiB=measure.vram(), states=states(), left=_stray()
    )


def killed_engine(notes: Notes) -> None:
    """The engine of a parked model is killed."""
    ready(notes, tier="park")
    free(notes)
    told(notes, "before", QWEN)
    alone = measure.vram()
    told(notes, "before", OPT)
    settle("parked")
    first = int(sh("podman", "inspect", "--format", "{{.State.Pid}}", names.container(QWEN)))
    payload = cgroup.of_process(first)
    assert payload is not None
    # The largest, as the kernel would choose where memory is short.
    engine = max(cgroup.family(first, payload), key=measure.resident)
    begin = time.monotonic()
    os.kill(engine, signal.SIGKILL)
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


def no_cuda_part(notes: Notes) -> None:
    """CRIU's plugin is away while a checkpoint is written, then while one is restored."""
    if not measure.HAS_GPU:
        return
    ready(notes, (OPT,), snapshot="live", image_sleep="2")
    told(notes, "before", OPT)
    # So that there is an image of this kind to go back to.
    sh("llmuxctl", "checkpoint", OPT, timeout=120)
    told(notes, "before", OPT)
    since = time.time()
    with away.moved(away.PLUGIN):
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
    # The cold start that comes of it is to be one as the others.
    measure.forget_compiled(OPT)
    since = time.time()
    with away.moved(away.PLUGIN):
        measure.pretend(OPT, plugin="")
        told(notes, "restored without the plugin", OPT)
    notes.add("cold", model=OPT, **_without_the_try(notes.rows[-1]))
    notes.add("so it said", log=measure.said(OPT, since)[-4:], vram_MiB=measure.vram())


def _without_the_try(row: dict[str, Any]) -> dict[str, Any]:
    """Of an answer after a restore that failed: what the cold start took of it."""
    (came,) = [move for move in row["moves"] if move["direction"] == "in"]
    tried = came["parts"]["restore"] + came["parts"]["clean"]
    return {key: row[key] - tried for key in ("first", "end")} | {"tried": tried}


def _stray() -> list[str]:
    """Containers that run without a unit of theirs."""
    running = sh("podman", "ps", "--format", "{{.Names}}").splitlines()
    wanted = {
        names.container(name) for name in MODELS if guest.state(name) in ("serving", "parked")
    }
    return sorted(set(running) - wanted)
