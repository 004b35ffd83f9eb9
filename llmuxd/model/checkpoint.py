# SPDX-License-Identifier: MIT
"""The record beside a checkpoint image: whose it is, whether it may be restored, what it cost.

podman keeps the image itself in the container's own directory and knows nothing of the model's
definition. A record that is absent, or that says why not, means: start cold.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from .. import files, loggers, names
from ..config import CANARY_PROMPT, Question, Sleep
from .identity import Identity, of_json

log = loggers.named("llmux-model")

# Larger files of an image are known by their size alone.
HASHED_SIZE = 1 << 20
# A file's times are as fine as its file system has them: to the second on the coarsest; in ns.
TICK = 2 * 10**9
# The container's /dev/shm, which podman keeps beside CRIU's images: they are worth nothing with
# another's.
SHM = "devshm-checkpoint.tar"


@dataclass(frozen=True)
class Checkpoint:
    """One image. `taken_at` is Unix time, `seconds` the dump's length, `size` in bytes on disk.

    `manifest` has the size of each file, and a hash of the small ones; a page file is too large to
    read twice. `canary` is what the server answered to `question`, or else to `canary_prompt`,
    when the image was taken; empty where it was not asked. `back` are the requests that wake an
    engine which sleeps in the image (vllm.py), whatever is let go of by now, and `sleep` is what
    that was then, None where an earlier release wrote it; `slept_badly`: it did not fall asleep, or
    woke up as another; `overslept`: this image, or the one before it, did not wake up. `starved`:
    so many times in a row its GPU had not the memory for it, from the Unix time `starved_since` on,
    and nobody could tell whether others had that. `live`: it holds what the server has come to
    since its start, as no other image does. `trial`: it was taken to be measured; it may be
    restored, but the next leaving takes another. `directory` is podman's; `place` is where that
    leads to (place.py), empty where it is none such. `invalid` says why it
    must not be restored; empty for a good one.
    """

    model: str
    container_id: str
    port: int
    identity: Identity
    taken_at: float
    seconds: float
    size: int
    directory: str
    manifest: dict[str, str] = field(default_factory=dict)
    canary: str = ""
    canary_prompt: str = CANARY_PROMPT
    question: Question | None = None
    back: tuple[str, ...] = ()
    sleep: Sleep | None = None
    slept_badly: bool = False
    overslept: bool = False
    starved: int = 0
    starved_since: float = 0.0
    live: bool = False
    trial: bool = False
    place: str = ""
    invalid: str = ""

    @property
    def valid(self) -> bool:
        """Whether the record allows a restore; whether the files are there is looked up.

        They are, too, while another dump is under way, or after one that was cut short.
        """
        directory = Path(self.directory)
        return not self.invalid and (_is_there(directory) or _is_there(aside(directory)))

    @property
    def whole(self) -> bool:
        """Whether it may be restored, and all of it is in its place, as it was written."""
        return not self.invalid and _is_there(Path(self.directory)) and self.damage() is None

    def why_not(self, here: Identity) -> str | None:
        """Why the image cannot be restored here; None where it can."""
        if self.invalid:
            return self.invalid
        if not _is_there(Path(self.directory)):
            return f"the image is missing from {self.directory}"
        return self.identity.difference(here) or self.damage()

    def damage(self) -> str | None:
        """Which file is not as it was written; None where each is.

        CRIU spins for ever on a page file that is too short, so nothing odd is shown to it. There
        is a small file for each of a server's threads, and somebody waits: they are not read again
        where nobody has touched one since.
        """
        if self._is_untouched():
            return None
        before = self._stat()
        found = manifest(Path(self.directory))
        for name, told in self.manifest.items():
            if found.get(name) != told:
                return f"its file {name} is {'damaged' if name in found else 'missing'}"
        self._note_seen(before)
        return None

    def _is_untouched(self) -> bool:
        try:
            return _seen(self.model).read_text() == self._stamp(self._stat())
        except (OSError, ValueError):
            return False

    def _note_seen(self, before: Mapping[str, os.stat_result]) -> None:
        """`before` its files were read, they were so; until the host's next start that is known.

        Nothing is noted where one was written just then: what is written next would have the same
        ctime.
        """
        newest = max((file.st_ctime_ns for file in before.values()), default=0)
        if time.time_ns() - newest > TICK:
            with contextlib.suppress(OSError):
                files.write_private(_seen(self.model), self._stamp(before))

    def _stat(self) -> dict[str, os.stat_result]:
        """What the disk says of its files now, those that are there."""
        return {path.name: path.stat() for path in Path(self.directory).iterdir()}

    def _stamp(self, found: Mapping[str, os.stat_result]) -> str:
        """Changes with whatever is done to one of the files, or to what is known of them.

        By ctime: nobody can set that, as one can mtime.
        """
        told = [
            (name, known, each.st_ino, each.st_size, each.st_ctime_ns)
            for name, known in self.manifest.items()
            if (each := found.get(name)) is not None
        ]
        return hashlib.sha256(repr((len(self.manifest), told)).encode()).hexdigest()

    def save(self) -> None:
        """Keep it, durably."""
        files.write_json(_path(self.model), asdict(self))

    def invalidate(self, reason: str) -> "Checkpoint":
        """Keep the record, with the reason, so that an operator can ask why it started cold."""
        marked = replace(self, invalid=reason)
        try:
            marked.save()
        except OSError:
            # A full disk: no record at all is as good a reason to start cold. Where that cannot be
            # either, the disk is read-only: no image is written over, nor one that fails replaced.
            with contextlib.suppress(OSError):
                self.forget(self.model)
        return marked

    @classmethod
    def load(cls, model: str) -> "Checkpoint | None":
        """The record of `model`; None where there is none that can be read."""
        raw = files.read_json(_path(model))
        if raw is None:
            return None
        try:
            identity = of_json(raw["identity"])
            if identity is None:
                return None
            return cls(
                model=str(raw["model"]),
                container_id=str(raw["container_id"]),
                port=int(str(raw["port"])),
                identity=identity,
                taken_at=float(str(raw["taken_at"])),
                seconds=float(str(raw["seconds"])),
                size=int(str(raw["size"])),
                directory=str(raw["directory"]),
                manifest=_texts(raw["manifest"]),
                canary=str(raw.get("canary", "")),
                canary_prompt=str(raw.get("canary_prompt", CANARY_PROMPT)),
                question=Question.from_json(raw.get("question")),
                back=files.texts(raw.get("back")),
                sleep=Sleep(str(raw["sleep"])) if raw.get("sleep") else None,
                slept_badly=bool(raw.get("slept_badly")),
                overslept=bool(raw.get("overslept")),
                starved=int(str(raw.get("starved", 0))),
                starved_since=float(str(raw.get("starved_since", 0.0))),
                live=bool(raw.get("live")),
                trial=bool(raw.get("trial")),
                place=str(raw.get("place", "")),
                invalid=str(raw.get("invalid", "")),
            )
        except (KeyError, TypeError, ValueError):
            return None

    @staticmethod
    def forget(model: str) -> None:
        """There is no image any more."""
        for path in (_path(model), _seen(model)):
            path.unlink(missing_ok=True)


def recorded() -> list[str]:
    """The models that have a record."""
    found = []
    for path in sorted((files.state_root() / "checkpoints").glob("*.json")):
        name = (files.read_json(path) or {}).get("model")
        if isinstance(name, str):
            found.append(name)
    return found


def used_at(model: str) -> float:
    """When its image was last restored or written, as Unix time; 0 where there is no record.

    It is the record's own modification time: a use changes nothing in it.
    """
    try:
        return _path(model).stat().st_mtime
    except OSError:
        return 0.0


def mark_used(model: str) -> None:
    """Its image is in use now."""
    with contextlib.suppress(OSError):
        os.utime(_path(model))


def aside(path: Path) -> Path:
    """Where an image, or what is kept beside it, waits until the next one is written.

    Beside where `path` really is, so that a rename is all it takes.
    """
    place = path.resolve()
    return place.with_name(f"{place.name}.before")


def settle(directory: Path, record: Checkpoint | None) -> None:
    """Of two images keep the one that the record vouches for; nothing to do where there is one."""
    before = aside(directory)
    if not before.is_dir():
        return
    place, shm = directory.resolve(), aside(directory.with_name(SHM))
    if record is not None and record.whole:
        files.remove_tree(before)
        shm.unlink(missing_ok=True)
        return
    log.warning("the checkpoint was not finished; the one before it is put back")
    if shm.exists():
        shm.replace(directory.with_name(SHM))
    if place.is_dir():
        files.remove_tree(place)
    before.rename(place)


def disk_usage(directory: Path) -> int:
    """Bytes that the files below `directory` take on disk (sparse files count what they hold)."""
    total = 0
    for path in directory.rglob("*"):
        total += path.lstat().st_blocks * 512
    return total


def manifest(directory: Path) -> dict[str, str]:
    """What `Checkpoint.manifest` should say of the image in `directory`: `size` or `size hash`."""
    told = {}
    for path in sorted(directory.iterdir()):
        size = path.stat().st_size
        told[path.name] = str(size)
        if size <= HASHED_SIZE and path.is_file():
            told[path.name] += " " + hashlib.sha256(path.read_bytes()).hexdigest()
    return told


def now() -> float:
    """Unix time, for `taken_at`."""
    return time.time()


def _is_there(directory: Path) -> bool:
    return (directory / "inventory.img").exists()


def _texts(raw: object) -> dict[str, str]:
    return {str(key): str(value) for key, value in raw.items()} if isinstance(raw, dict) else {}


def _seen(model: str) -> Path:
    return files.runtime_root() / f"{names.slug(model)}.image"


def _path(model: str) -> Path:
    return files.state_root() / "checkpoints" / f"{names.slug(model)}.json"
