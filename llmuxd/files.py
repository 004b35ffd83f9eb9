# SPDX-License-Identifier: MIT
"""Small JSON files that two programs share: written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from . import run_files

# systemd names this one, and run_files.DIRECTORY, for a unit that asks for them (systemd.exec(5));
# both units ask for the same directories, because the daemon reads what the models' helper writes.
STATE_DIRECTORY = "/var/lib/llmux"
# The models' units alone ask for this one.
CACHE_DIRECTORY = "/var/cache/llmux"


def state_root() -> Path:
    """Where that is kept which survives a reboot."""
    return Path(os.environ.get("STATE_DIRECTORY", STATE_DIRECTORY))


def runtime_root() -> Path:
    """Where that is kept which a reboot makes void."""
    return Path(run_files.directory())


def cache_root() -> Path:
    """Where that is kept which can be made again."""
    return Path(os.environ.get("CACHE_DIRECTORY", CACHE_DIRECTORY))


def write_json(
    path: Path, value: Mapping[str, object], times: tuple[int, int] | None = None
) -> None:
    """Replace `path` by `value`, durably: a crash leaves the old file or the new one.

    Once it returns it is the new one, after a power cut too: what it vouches for may be on another
    disk, and what it does not vouch for any more is deleted next. `times`: those of its last access
    and change, in ns; None for now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        if times is not None:
            os.utime(file.fileno(), ns=times)
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_tree(directory: Path) -> None:
    """Remove it and all that is below."""
    # It loads the libraries of four compressors, and a start that has nothing to remove would wait.
    import shutil

    shutil.rmtree(directory)


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text`, for the owner's eyes only."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def texts(value: object) -> tuple[str, ...]:
    """The list in a value that was read; empty where it is none."""
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def read_json(path: Path) -> dict[str, object] | None:
    """The object in `path`; None where there is no readable one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
