# SPDX-License-Identifier: MIT
"""The seed's flow: podman container checkpoint and restore of the server as it stands.

As its instructions have it: nothing is let go of, and the health is asked for each second.
"""

import time
from pathlib import Path

from llmuxd import names
from llmuxd.model import checkpoint, container, vllm
from tests.bench import switch
from tests.machine.ring import guest
from tests.machine.ring.guest import sh

from . import measure
from .measure import MODELS, ask
from .plan import Notes
from .switches import ready

# So that each model goes out, and comes back, three times.
SWITCHES = 5
LINK = Path("/usr/local/bin/cuda-checkpoint")


def seed(notes: Notes) -> None:
    """Each out and back three times, and the full switch between the two.

    With containers that llmuxd has made, from its images, which are gone afterwards. They have
    podman's own /dev/shm, as those have that people make: with a GPU anyhow.
    """
    for name in MODELS:
        measure.leave(name)
    ready(notes, **({} if measure.HAS_GPU else {"podman_args": ["--shm-size=2g"]}))
    records = {name: guest.record(name) for name in MODELS}
    guest.stop_everything()
    # As the README has it: CRIU's plugin finds it by the default PATH, and is off without it.
    LINK.unlink(missing_ok=True)
    LINK.symlink_to("/usr/libexec/llmux/bin/cuda-checkpoint")
    try:
        _by_hand(notes, records)
    finally:
        LINK.unlink()
        for name in MODELS:
            sh("podman", "stop", "--time", "0", names.container(name), check=False)
        sh("systemctl", "stop", "by-hand-*", check=False)
        guest.wipe()
        _remove_cgroups()


def _by_hand(notes: Notes, records: dict[str, guest.Json]) -> None:
    ports = {name: int(record["port"]) for name, record in records.items()}
    for name, record in records.items():
        switch.restore(name, len(notes.rows))
        switch.wait_each_second(ports[name])
        vllm.take_up(ports[name], tuple(record.get("back", ())))
        notes.add(
            "as it stands", model=name, same=measure.same(name, ask(name, ports[name]).text),
            vram_MiB=measure.vram(),
        )  # fmt: skip
    take_turns(notes, ports)


def take_turns(notes: Notes, ports: dict[str, int]) -> None:
    """Each of the two that run goes out and comes back three times, most of it in switches."""
    new, old = MODELS
    _out(notes, new)
    for _ in range(SWITCHES):
        seconds = _out(notes, old) + _back(notes, new, ports[new])
        notes.add("seed switch", model=new, seconds=seconds)
        old, new = new, old
    # The one that is out is back for the third time, beside the other.
    _back(notes, new, ports[new])


def _out(notes: Notes, name: str) -> float:
    switch.gather(name)
    # The disk need not hold two of them.
    container.empty_directory(Path(str(guest.record(name)["directory"])))
    argv = ("podman", "container", "checkpoint", "--tcp-established", names.container(name))
    seconds = measure.command(*argv, timeout=200)
    size = checkpoint.disk_usage(Path(str(guest.record(name)["directory"])))
    notes.add(
        "seed out", model=name, seconds=seconds, image_GiB=size / 2**30, vram_MiB=measure.vram(),
        disk_GiB=measure.disk(),
    )  # fmt: skip
    return seconds


def _back(notes: Notes, name: str, port: int) -> float:
    begin = time.monotonic()
    switch.restore(name, len(notes.rows))
    restored = time.monotonic() - begin
    switch.wait_each_second(port)
    answer = ask(name, port)
    seconds = time.monotonic() - begin
    notes.add(
        "seed back", model=name, seconds=seconds, restore=restored,
        same=measure.same(name, answer.text),
    )  # fmt: skip
    return seconds


def _remove_cgroups() -> None:
    """podman's restore makes a container's cgroup anew, outside of the unit that it was in.

    systemd could not start the unit in it: `Failed to spawn executor: Device or resource busy`.
    """
    for unit in Path("/sys/fs/cgroup").glob("system.slice/system-llmux*/llmux-model@*"):
        for path in sorted(unit.rglob("*/"), reverse=True):
            path.rmdir()
        unit.rmdir()
