# SPDX-License-Identifier: MIT
"""How many images a host keeps: where a new one would be too much, others make room for it.

The least lately used go first, and before them those that only another release can restore. Never
those of models that run or move: theirs are all that these come back from. Nor those that requests
wait for just now.
"""

import contextlib
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import loggers, names
from ..config import Config, ModelConfig
from ..events import Event, about
from . import cgroup, place
from .activation import Activation, Busy, one_at_a_time
from .checkpoint import Checkpoint, disk_usage, recorded, used_at
from .container import Container
from .process import CommandFailed

log = loggers.named("llmux-model")

# Without `checkpoint_space`: a full disk is the end of podman, and of much else.
SHARE = 0.8


class NoRoom(Exception):
    """There can be no such image; one line says what is in its way."""


class InUse(Exception):
    """The model runs: it keeps its image."""


@dataclass(frozen=True)
class Limits:
    """Of all images together. `number` None: none; `space` in bytes, None: SHARE of their disk."""

    number: int | None = None
    space: int | None = None

    @classmethod
    def of(cls, config: Config) -> "Limits":
        """What llmux.yaml says."""
        return cls(config.checkpoint_limit, config.checkpoint_space)


@dataclass(frozen=True)
class Room:
    """On disk, for an image of `model` in `directory`; those of `needed` keep theirs."""

    model: str
    directory: Path
    limits: Limits = Limits()
    needed: Collection[str] = ()

    def make(self, size: int) -> None:
        """Have room for an image that is to be written, `size` bytes as far as is known, else 0.

        NoRoom where it cannot be had. What is in the directory goes before the image comes.
        """
        self._give_up_others(size, writing=True)

    def hold(self, size: int) -> None:
        """The image is written and takes `size` bytes: keep the limits, or NoRoom."""
        self._give_up_others(size, writing=False)

    def _give_up_others(self, size: int, *, writing: bool) -> None:
        others = self._others()
        stay = [each for each in others if self._is_needed(each)]
        go = sum(each.size for each in others if each not in stay and self._is_near(each))
        why = (self._disk_full(size, go) if writing else "") or self._in_the_way(stay, size)
        if why:
            # Whoever went, it would be in vain.
            raise NoRoom(why)
        while why := (self._disk_full(size) if writing else "") or self._in_the_way(others, size):
            gone = self._give_up_one(others, why)
            if gone is None:
                raise NoRoom(why)
            others.remove(gone)

    def _others(self) -> list[Checkpoint]:
        records = [Checkpoint.load(name) for name in recorded() if name != self.model]
        return [record for record in records if record is not None and record.valid]

    def _in_the_way(self, others: list[Checkpoint], size: int) -> str:
        """Which limit is too low for one more image; empty where none is."""
        limit = self.limits.number
        if limit is not None and len(others) >= limit:
            return f"{len(others)} other images are kept, and checkpoint_limit is {limit}"
        if self.limits.space is not None:
            taken, space = sum(each.size for each in others), self.limits.space
            name = "checkpoint_space"
        else:
            taken = sum(each.size for each in others if self._is_near(each))
            space = int(SHARE * shutil.disk_usage(_there(self.directory)).total)
            name = f"{SHARE:.0%} of the disk of {self.directory}"
        if taken + size <= space:
            return ""
        return (
            f"the image takes {size / 1e9:.1f} GB, other images {taken / 1e9:.1f} GB,"
            f" and {name} is {space / 1e9:.1f} GB"
        )

    def _is_needed(self, other: Checkpoint) -> bool:
        return other.model in self.needed and not other.identity.is_foreign

    def _is_near(self, other: Checkpoint) -> bool:
        """Whether it is on the same disk."""
        return _device(Path(other.directory)) == _device(self.directory)

    def _disk_full(self, size: int, gain: int = 0) -> str:
        """Why the disk has no room for so much, had it `gain` more; empty where it has."""
        free = shutil.disk_usage(_there(self.directory)).free
        if self.directory.is_dir():
            free += disk_usage(self.directory)
        if free + gain >= size:
            return ""
        return (
            f"the disk of {self.directory} has room for {free / 1e9:.1f} GB,"
            f" and the last image took {size / 1e9:.1f} GB"
        )

    def _give_up_one(self, others: list[Checkpoint], why: str) -> Checkpoint | None:
        """Discard the one of least use of those that may go; None where none may."""
        for record in sorted(others, key=_use):
            if self._is_needed(record):
                continue
            try:
                _make_room_by(record, why)
            except (Busy, InUse, CommandFailed, OSError) as error:
                log.info("the image of %s stays: %s", record.model, error)
            else:
                return record
        return None


@contextlib.contextmanager
def at_rest(model: str) -> Iterator[Container]:
    """Have its container to oneself. Busy, or InUse, where the model is not at rest."""
    with one_at_a_time(model, wait=False):
        # One that runs keeps its own until it leaves.
        if Activation.load(model) is not None or cgroup.of_unit(names.unit(model)) is not None:
            raise InUse("the model runs")
        yield Container(ModelConfig(name=model, image=""))


def discard(record: Checkpoint) -> None:
    """Remove the image and its container. Busy, or InUse, where the model is not at rest."""
    with at_rest(record.model) as container:
        container.remove()
        place.remove(record)


def _use(record: Checkpoint) -> tuple[bool, float]:
    return not record.identity.is_foreign, used_at(record.model)


def _make_room_by(record: Checkpoint, why: str) -> None:
    discard(record)
    record.invalidate(f"it made room for another: {why}")
    lost = ": what its server had come to is lost with it" if record.live else ""
    log.warning(
        "removed the checkpoint of %s, %.1f MB, the least lately used, for there is no room (%s)%s",
        record.model, record.size / 1e6, why, lost,
        extra=about(Event.CHECKPOINT_REMOVED, model=record.model),
    )  # fmt: skip


def _there(directory: Path) -> Path:
    return directory if directory.is_dir() else directory.parent


def _device(directory: Path) -> int:
    return _there(directory).stat().st_dev
