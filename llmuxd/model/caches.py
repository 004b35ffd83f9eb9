# SPDX-License-Identifier: MIT
"""Where the server of a read-only image writes what is to outlive its container: its caches.

Compiled code (torch.compile's, flashinfer's and llama.cpp's below ~/.cache, Triton's, CUDA's) and
weights from a hub. Each model has its own on the host, mounted at those places of root's home, so
that a cold start finds what the one before has compiled. Not one for all: CRIU restores no server
whose mapped files were written anew by another (`bad build-ID`).
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from .. import files, names, run_files
from ..config import ModelConfig

# In the home of the user that engines' images run their server as.
HOME = "/root"
PLACES = (".cache", ".nv", ".triton")
# Whatever user of its own an image has; nobody but root gets as far as here on the host.
_MODE = 0o1777


def volumes(model: ModelConfig) -> list[str]:
    """What podman's --volume is to be given for them; they are there then. A place that the
    configuration mounts something at itself is left to that."""
    home = dict(model.env).get("HOME", HOME)
    taken = _mounted(model)
    given = []
    for name in PLACES:
        place = f"{home.rstrip('/')}/{name}"
        if place in taken:
            continue
        here = files.cache_root() / names.slug(model.name) / name
        here.mkdir(parents=True, exist_ok=True)
        here.chmod(_MODE)
        # Z: a label of SELinux's own for the container; nothing where there is no SELinux.
        given.append(f"{here}:{place}:Z")
    return given


def forget_others(models: Iterable[str]) -> None:
    """Remove those of all models but these, and but those that still run."""
    kept = {names.slug(name) for name in models}
    for path in _all():
        if path.name not in kept and not _is_up(path.name):
            _remove(path)


def forget_all() -> None:
    """Remove those of all models; none runs any more."""
    for path in _all():
        _remove(path)


def _is_up(slug: str) -> bool:
    """Whether the unit of that model has a server, or starts one (activation.py)."""
    ends = run_files.ACTIVATION, run_files.PLACE
    return any((files.runtime_root() / f"{slug}{end}").exists() for end in ends)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def _all() -> list[Path]:
    root = files.cache_root()
    return sorted(root.iterdir()) if root.is_dir() else []


def _mounted(model: ModelConfig) -> set[str]:
    """Every word by which the configuration may name a place in the container."""
    words = " ".join([*model.volumes, *model.podman_args])
    return {word.rstrip("/") for word in re.split(r"[ :,=]", words)}
