# SPDX-License-Identifier: MIT
"""Where a model's image lies if not among podman's own files: a link leads podman there.

The link is made before a container's first dump and stays for as long as the container: an image is
restored from where it was written, whatever llmux.yaml says by then.
"""

import shutil
import stat
from pathlib import Path

from .. import loggers, names
from .checkpoint import Checkpoint

log = loggers.named("llmux-model")

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Unusable(Exception):
    """Nothing can be written there; one line says why."""


def prepare(directory: Path, wish: str, model: str, size: int) -> None:
    """Have podman's checkpoint `directory` lie in `wish`, if that is named and has `size` bytes.

    Where it cannot be, the image lies where podman puts it: better there than nowhere.
    """
    if directory.is_dir() or not wish:
        return
    # One that leads nowhere: to a tmpfs that is gone, say.
    directory.unlink(missing_ok=True)
    place = Path(wish, names.container(model))
    try:
        _make(Path(wish))
        free = shutil.disk_usage(wish).free
        if free < size:
            raise Unusable(f"it has {free / 1e9:.1f} GB free, and {size / 1e9:.1f} GB are needed")
        _clear(place)
        place.mkdir(mode=0o700)
        directory.symlink_to(place)
    except (OSError, Unusable) as error:
        why = error.strerror if isinstance(error, OSError) else error
        log.warning("its image will lie among podman's files, not in %s: %s", wish, why)


def remove(record: Checkpoint) -> None:
    """The container is gone, or about to go: what lies elsewhere goes too."""
    place = Path(record.place)
    if place.is_absolute() and place.name == names.container(record.model):
        _clear(place)


def _make(wish: Path) -> None:
    """Have it be there, and nobody but root able to put anything in the way."""
    _check(next(path for path in (wish, *wish.parents) if path.exists()))
    wish.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check(wish)


def open_to_others(path: Path) -> Path | None:
    """What, of the path and all above it, others than root may write to; None where nothing is."""
    real = path.resolve(strict=True)
    return next((each for each in (real, *real.parents) if _is_open(each)), None)


def _check(wish: Path) -> None:
    unsafe = open_to_others(wish)
    if unsafe is not None:
        raise Unusable(f"others than root may write to {unsafe}")


def _is_open(path: Path) -> bool:
    """Whether anybody but root can put something there, in the way."""
    status = path.stat()
    return status.st_uid != 0 or bool(status.st_mode & _OTHERS_WRITE)


def _clear(place: Path) -> None:
    for each in (place, place.with_name(f"{place.name}.before")):
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
