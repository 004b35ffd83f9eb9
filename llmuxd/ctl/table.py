# SPDX-License-Identifier: MIT
"""Text in columns, and numbers as people read them."""

import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime

Paint = Callable[[int, str], str]


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns, two spaces between them, no trailing blanks."""
    return "\n".join(lines(header, rows))


def lines(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    paint: Paint = lambda column, cell: cell,
    room: int = sys.maxsize,
) -> list[str]:
    """The lines of such a table.

    `paint` gets the number of a column and a cell of the body, and may add escape codes to it.
    `room`: what is further right than so many characters is cut off.
    """
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    body = [_line(row, widths, paint, room) for row in rows]
    return [_line(header, widths, lambda column, cell: cell, room), *body]


def _line(cells: Sequence[str], widths: Sequence[int], paint: Paint, room: int) -> str:
    line = ""
    for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        if room <= 0 or not any(cells[column:]):
            break
        gap = width + 2 - len(cell) if any(cells[column + 1 :]) else 0
        shown = cell[:room]
        line += paint(column, shown) + " " * min(gap, room - len(shown))
        room -= width + 2
    return line


def bar(share: float, width: int = 20) -> str:
    """A bar that is filled to `share`, of 0 to 1."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return f"[{'#' * filled}{' ' * (width - filled)}]"


def size(number: int) -> str:
    """Bytes in the largest unit that leaves a number above 1; `-` for none."""
    if not number:
        return "-"
    value = float(number)
    for unit in ("B", "K", "M", "G"):
        if value < 1024:
            return f"{value:.0f}{unit}" if value >= 100 or unit == "B" else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}T"


def age(seconds: float) -> str:
    """A span of time, short: 12s, 4min, 3h, 2d."""
    for limit, divisor, unit in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def moment(seconds: float) -> str:
    """Unix time as people read it; empty for 0."""
    if not seconds:
        return ""
    then = datetime.fromtimestamp(seconds)
    return f"{then:%Y-%m-%d %H:%M:%S}, {age(max(time.time() - seconds, 0.0))} ago"
