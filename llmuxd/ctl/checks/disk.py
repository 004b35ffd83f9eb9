# SPDX-License-Identifier: MIT
"""Where checkpoints lie: podman's own directory, and each `checkpoint_dir`."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from ... import files, names
from ...config import ModelConfig
from .. import table
from .look import Look
from .result import Result, fail, ok, skip, warn

GIB = 1 << 30
# Until a model has been dumped once nobody knows; 26 GiB and 2.5 GB have been seen.
GUESS_GPU = 30 * GIB
GUESS_CPU = 4 * GIB
_IN_MEMORY = ("tmpfs", "ramfs")
# Without owners and modes, links, or files of more than 4 GiB.
_UNFIT = ("vfat", "msdos", "exfat", "iso9660", "squashfs")
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs")


class _Mount(NamedTuple):
    """The file system that a path is on; all empty where that is not known."""

    point: str = ""
    kind: str = ""
    read_only: bool = False


def disk(look: Look) -> list[Result]:
    """The checkpoints of all models find room, on file systems that are fit for them."""
    models = [model for model in look.models if model.checkpoint and not model.unit]
    elsewhere: dict[str, list[ModelConfig]] = {}
    for model in models:
        if model.checkpoint_dir:
            elsewhere.setdefault(model.checkpoint_dir, []).append(model)
    found = [
        _access(look, place) or _disk(look, place, members) for place, members in elsewhere.items()
    ]
    rest = [model for model in models if not model.checkpoint_dir]
    if rest or not found:
        found.insert(0, _podmans(look, rest))
    return found


def _podmans(look: Look, models: list[ModelConfig]) -> Result:
    place = look.podman_text("store", "graphRoot")
    if not place:
        return skip("disk", "podman does not say where it keeps checkpoints")
    return _disk(look, place, models)


def _access(look: Look, place: str) -> Result | None:
    """What keeps llmuxd from using a `checkpoint_dir`; its checkpoints lie with podman's then."""
    unsafe = look.host.unsafe(_there(look, place))
    if unsafe is None:
        return None
    return fail(
        "disk",
        f"checkpoint_dir {place} is not used: others than root may write to {unsafe}",
        f"chown root: {unsafe} and chmod go-w {unsafe}, or name another directory",
    )


def _disk(look: Look, place: str, models: list[ModelConfig]) -> Result:
    there = _there(look, place)
    free = look.host.disk_free(there)
    if free is None:
        return warn("disk", f"the free space of {place} is not known", f"df {there}")
    mount = _mount(look, there)
    if mount.read_only or mount.kind in _UNFIT:
        what = "is mounted read-only" if mount.read_only else f"is {mount.kind}"
        return fail("disk", f"{place} {what}, and takes no checkpoint", "name another directory")
    sizes = {model.name: _recorded(look, model.name) for model in models}
    # The old dump of a model is removed before the new one is written: both are never there.
    room = free + sum(size for size, here in sizes.values() if here)
    unknown = [name for name, (size, _) in sizes.items() if not size]
    guess = GUESS_GPU if look.has_gpu else GUESS_CPU
    needed = sum(size for size, _ in sizes.values()) + guess * len(unknown)
    by = f"{len(models)} checkpoint{'s' if len(models) != 1 else ''} take{'s' * (len(models) == 1)}"
    text = f"{by} {_size(needed)}"
    if unknown:
        text += f" (a guess for {len(unknown)}: {_size(guess)} each)"
    text += f", {place} has {_size(room)} for them"
    if needed > room:
        hint = f"free some space in {place}, or set 'checkpoint: false' for some models"
        return (fail if free < GIB else warn)("disk", text, hint)
    return _of_kind(look, mount, text, needed)


def _of_kind(look: Look, mount: _Mount, text: str, needed: int) -> Result:
    """There is room; what follows from the file system that it is on."""
    if mount.kind in _REMOTE:
        return warn(
            "disk",
            f"{text}, over the network ({mount.kind}): a switch takes as long as that does",
            "name a directory on a disk of this host",
        )
    if mount.kind not in _IN_MEMORY:
        return ok("disk", text)
    text += f", in memory ({mount.kind}): they are gone after a reboot"
    memory = _memory(look)
    if memory and needed > memory // 2:
        return warn(
            "disk",
            f"{text}, and this host has {_size(memory)} for the servers too",
            "have fewer of them there ('checkpoint_dir:' of each model)",
        )
    return ok("disk", text)


def _there(look: Look, place: str) -> str:
    """The path, or what is above it that is there already: llmuxd makes the rest."""
    return next(
        (str(p) for p in (Path(place), *Path(place).parents) if look.host.exists(str(p))), "/"
    )


def _mount(look: Look, path: str) -> _Mount:
    found = _Mount()
    for line in (look.host.read("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 6 or not kind:
            continue
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields[4])
        # The last one of a place lies on top.
        if Path(path).is_relative_to(point) and len(point) >= len(found.point):
            read_only = "ro" in fields[5].split(",") or "ro" in kind[-1].split(",")
            found = _Mount(point, kind[0], read_only)
    return found


def _memory(look: Look) -> int:
    """Bytes of memory that this host has; 0 where that is not known."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", look.host.read("/proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _recorded(look: Look, model: str) -> tuple[int, bool]:
    """The size of the model's last dump (0: never dumped), and whether it is still there."""
    path = Path(files.STATE_DIRECTORY, "checkpoints", f"{names.slug(model)}.json")
    try:
        record = json.loads(look.host.read(str(path)) or "")
        size = int(record["size"])
        there = look.host.exists(f"{record['directory']}/inventory.img")
    except (ValueError, TypeError, LookupError):
        return 0, False
    return max(size, 0), there


def _size(number: int) -> str:
    return table.size(number) if number else "nothing"
