# SPDX-License-Identifier: MIT
"""What the host was short of when a model did not come back: no fault of its image, which stays."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

# A disk with less is full: podman writes its database, CRIU its log.
FULL = 1 << 20

# In lower case, as podman, CRIU, its CUDA plugin, cuda-checkpoint, PyTorch and vLLM write them.
_DISK = ("no space left on device", "disk quota exceeded", "database or disk is full", "enospc")
_HOST = ("cannot allocate memory", "enomem", "oom-kill")


def of(said: str, *, gpu: Callable[[], bool] = lambda: False) -> str:
    """What was missing by what was said, and what to do about it; empty where nothing was.

    `gpu` is asked where `out of memory` is said: whether others are on the model's GPU too.
    """
    words = said.lower()
    if any(each in words for each in _DISK):
        return "a disk is full: make room on it"
    if "out of memory" in words.replace("_", " ") and gpu():
        return "its GPU's memory is full: end what else holds it, 'nvidia-smi' shows who"
    if any(each in words for each in _HOST):
        return "the host's memory is full: end what else takes it"
    return ""


def of_disks(directories: Iterable[Path]) -> str:
    """The same of the disks of these directories, by what is free there."""
    for directory in directories:
        try:
            free = shutil.disk_usage(directory).free
        except OSError:
            continue
        if free < FULL:
            return f"the disk of {directory} is full: make room on it"
    return ""
