# SPDX-License-Identifier: MIT
"""What a job does, on standard error: one line that lives on a terminal, else a line a phase."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from . import table, terminal

# Seconds between two looks at the clock; llmuxd is not asked for them.
_TICK = 0.1


class Progress:
    """Use `with`: a line that lives is gone at the end."""

    def __init__(self, model: str):
        self._model = model
        self._begin = time.monotonic()
        self._lives = terminal.is_one(sys.stderr)
        self._hidden = False
        self._told = ""

    @property
    def tick(self) -> float | None:
        """Call `show` again after so many seconds; None: only when there is something new."""
        return _TICK if self._lives else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._lives and self._told:
            terminal.rewrite(sys.stderr, "")

    def show(self, job: Mapping[str, Any]) -> None:
        """`job`: its properties, empty before the first is known."""
        phase = str(job.get("Phase", "waiting"))
        line = f"{time.monotonic() - self._begin:7.1f}s  {self._model}: {phase}"
        if self._lives and not self._hidden:
            terminal.rewrite(sys.stderr, line + _share(job))
        elif not self._lives and phase != self._told and not phase.startswith("failed: "):
            print(line, file=sys.stderr, flush=True)
        self._told = phase

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the line to others meanwhile."""
        self._hidden = True
        try:
            yield
        finally:
            self._hidden = False


def _share(job: Mapping[str, Any]) -> str:
    percent = int(job.get("Progress", 0))
    return f"  {table.bar(percent / 100)} {percent} %" if percent else ""
