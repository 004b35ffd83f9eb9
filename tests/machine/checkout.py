# SPDX-License-Identifier: MIT
"""This checkout, as what gets installed in a machine."""

import hashlib
import os
import subprocess
from pathlib import Path

from . import process
from .errors import MachineError

_NEVER = {".git", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".venv"}


def top() -> Path:
    return Path(__file__).resolve().parents[2]


def files() -> list[str]:
    """Paths of what belongs to the checkout: what git tracks or would, all where git is not."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        # A checkout may belong to somebody else, root runs this.
        listed = process.run([command[0], "-c", "safe.directory=*", *command[1:]], cwd=top())
        names = [name for name in listed.split("\0") if name]
    except MachineError:
        names = _walk()
    return sorted(name for name in names if (top() / name).is_file())


def _walk() -> list[str]:
    names: list[str] = []
    for directory, inner, found in os.walk(top()):
        inner[:] = [name for name in inner if name not in _NEVER]
        names += [str((Path(directory) / name).relative_to(top())) for name in found]
    return names


def fingerprint() -> str:
    """Changes when a file's name, mode or content does."""
    digest = hashlib.sha256()
    for name in files():
        file = top() / name
        digest.update(f"{name}\0{file.stat().st_mode:o}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def archive() -> bytes:
    """All of it as a tar file."""
    return subprocess.run(
        ["tar", "--create", "--file=-", "--owner=0", "--group=0", "--null", "--files-from=-"],
        cwd=top(),
        input="\0".join(files()).encode(),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
