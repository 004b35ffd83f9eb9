# SPDX-License-Identifier: MIT
"""What was built once and is kept outside the tree, keyed by what it was built from.

An entry is a directory, CACHE/KIND/KEY. It gets its name when it is whole, so a broken build
leaves nothing that a later one could take for an entry.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import MachineError

_UNFINISHED = ".building-"
_PRUNE_SECONDS = 24 * 3600


def directory() -> Path:
    return Path(os.environ.get("LLMUX_MACHINE_CACHE", "/var/cache/llmux-machine"))


def downloads() -> Path:
    path = directory() / "downloads"
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class Entry:
    kind: str  # "root", "images/fake"
    recipe: str
    fill: Callable[[Path], None]  # makes it in the empty directory that it is given

    @property
    def place(self) -> Path:
        """Where the entry is, or would be."""
        key = hashlib.sha256(self.recipe.encode()).hexdigest()[:16]
        return directory() / self.kind / key

    @property
    def is_built(self) -> bool:
        return self.place.is_dir()

    def build(self) -> Path:
        """Makes the entry where it is missing; a second builder waits for the first."""
        if self.is_built:
            return self.place
        kept = self.place.parent
        kept.mkdir(parents=True, exist_ok=True)
        with locked(kept / ".lock"):
            if not self.is_built:
                for leftover in kept.glob(f"{_UNFINISHED}*"):
                    remove(leftover)
                self._build(Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=kept)))
        return self.place

    def _build(self, unfinished: Path) -> None:
        try:
            unfinished.chmod(0o755)
            self.fill(unfinished)
            unfinished.rename(self.place)
        except BaseException:
            # Where this fails, the next builder's try is as good.
            with suppress(OSError, MachineError):
                remove(unfinished)
            raise

    def prune(self) -> None:
        """Removes what older recipes made; not at once, another checkout may have it in use."""
        long_ago = time.time() - _PRUNE_SECONDS
        for path in self.place.parent.glob("[0-9a-f]*"):
            if path != self.place and path.stat().st_mtime < long_ago:
                remove(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file; its holder's death lets go of it, and its holder may remove it."""
    while True:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever waited may have got a file that is gone: somebody else holds the new one.
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                yield
                return


def remove(path: Path) -> None:
    """Removes a tree, unless something is mounted in it: that would be removed with it."""
    inside = f"{path.resolve()}/"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mounted = line.split()[4]
        if f"{mounted}/".startswith(inside):
            raise MachineError(f"{mounted} is still mounted", f"umount -R {mounted}")
    shutil.rmtree(path)
