# SPDX-License-Identifier: MIT
"""What a terminal can do: colour, a line that is written anew, a screen of its own.

Nothing here writes an escape code where the stream is no terminal.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import TextIO


class Style(StrEnum):
    """SGR parameters (ECMA-48 8.3.117)."""

    BOLD = "1"
    DIM = "2"
    RED = "31"
    GREEN = "32"
    YELLOW = "33"
    BLUE = "34"


_STATES = {
    "serving": Style.GREEN,
    "starting": Style.YELLOW,
    "draining": Style.YELLOW,
    "parked": Style.BLUE,
    "failed": Style.RED,
    "cold": Style.DIM,
}

_OTHER_SCREEN, _OWN_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def is_one(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that knows escape codes."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def has_colour(stream: TextIO) -> bool:
    """The same, and its user has nothing against colour (no-color.org)."""
    return is_one(stream) and not os.environ.get("NO_COLOR")


def paint(text: str, style: Style | None) -> str:
    """The text in a style."""
    return f"\x1b[{style}m{text}\x1b[0m" if style else text


def state_style(state: str) -> Style | None:
    """How a model's state is shown."""
    return _STATES.get(state)


def size() -> tuple[int, int]:
    """Columns and lines."""
    return shutil.get_terminal_size()


def rewrite(stream: TextIO, text: str) -> None:
    """Replace the line that the cursor is on; it stays there."""
    columns, _ = size()
    stream.write(f"\r{text[: columns - 1]}{_CLEAR_LINE}")
    stream.flush()


@contextlib.contextmanager
def other_screen(stream: TextIO) -> Iterator[None]:
    """A screen of one's own; what was there before comes back, however the block ends."""
    stream.write(_OTHER_SCREEN)
    try:
        yield
    finally:
        stream.write(_OWN_SCREEN)
        stream.flush()


def draw(stream: TextIO, lines: list[str]) -> None:
    """Fill the screen with these lines, from the top, without flicker."""
    stream.write(_HOME + "".join(f"{line}{_CLEAR_LINE}\r\n" for line in lines) + _CLEAR_BELOW)
    stream.flush()


@contextlib.contextmanager
def keys_at_once() -> Iterator[None]:
    """Keys are read without Enter, and not shown. For where standard input is a terminal."""
    import termios

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    now = termios.tcgetattr(fd)
    now[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(fd, termios.TCSADRAIN, now)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
