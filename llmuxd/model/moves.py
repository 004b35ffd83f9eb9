# SPDX-License-Identifier: MIT
"""What a model's last way in and its last way out took, part by part.

Kept in /run/llmux for llmuxd and for benchmarks, and told to the journal in fields:
`journalctl -o json LLMUX_MODEL=NAME` has LLMUX_PHASE, LLMUX_SECONDS, and LLMUX_SECONDS_RESTORE and
the like for the parts.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from .. import files, loggers, names
from ..events import Event, about

log = loggers.named("llmux-model")


class Direction(StrEnum):
    """Whether the model comes or leaves."""

    IN = "in"
    OUT = "out"


@dataclass(frozen=True)
class Move:
    """One way. `seconds` is all of it, `parts` those of it that were measured, in their order.

    `ended` is Unix time.
    """

    way: str
    seconds: float
    parts: dict[str, float]
    ended: float

    def save(self, model: str, direction: Direction) -> None:
        """Keep it as the model's last, and tell the journal."""
        files.write_json(_path(model, direction), asdict(self))
        did = "serving" if direction is Direction.IN else "gone"
        parts = ", ".join([self.way, *(f"{part} {s:.3f} s" for part, s in self.parts.items())])
        event = Event.MODEL_SERVES if direction is Direction.IN else None
        extra = about(event, model=model, phase=self.way, seconds=self.seconds, parts=self.parts)
        log.info("%s after %.2f s (%s)", did, self.seconds, parts, extra=extra)

    @classmethod
    def load(cls, model: str, direction: Direction) -> "Move | None":
        """The last one of `model` since the host was booted; None where there is none."""
        raw = files.read_json(_path(model, direction))
        if raw is None:
            return None
        try:
            parts = raw["parts"]
            return cls(
                way=str(raw["way"]),
                seconds=float(str(raw["seconds"])),
                parts={str(part): float(s) for part, s in dict(parts).items()},  # type: ignore[call-overload]
                ended=float(str(raw["ended"])),
            )
        except (KeyError, TypeError, ValueError):
            return None


class Stopwatch:
    """Measures a way from its own making on; `way` may be named late."""

    def __init__(self, way: str):
        self.way = way
        self._begin = time.monotonic()
        self._parts: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part; one that comes twice is summed up, one that fails counts too."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._parts[name] = self._parts.get(name, 0.0) + time.monotonic() - begin

    def move(self) -> Move:
        """What was measured until now."""
        return Move(self.way, time.monotonic() - self._begin, dict(self._parts), time.time())


def _path(model: str, direction: Direction) -> Path:
    return files.runtime_root() / f"{names.slug(model)}.{direction}.json"
