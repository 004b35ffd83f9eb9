# SPDX-License-Identifier: MIT
"""What a check found."""

from dataclasses import dataclass
from enum import StrEnum

from .change import Change


class Status(StrEnum):
    """How it stands with one prerequisite; only FAIL keeps llmuxd from working."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Result:
    """One prerequisite: `text` says what is, `hint` what to do next (empty: nothing).

    `changes` do what the hint says, where that is safe to do without knowing the host.
    """

    name: str
    status: Status
    text: str
    hint: str = ""
    changes: tuple[Change, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether llmuxd cannot work here because of it."""
        return self.status is Status.FAIL


def ok(name: str, text: str) -> Result:
    """It is as it must be."""
    return Result(name, Status.OK, text)


def warn(name: str, text: str, hint: str, *changes: Change) -> Result:
    """It works, or may work, but not as well as it could."""
    return Result(name, Status.WARN, text, hint, changes)


def fail(name: str, text: str, hint: str, *changes: Change) -> Result:
    """It does not work before somebody does what `hint` says."""
    return Result(name, Status.FAIL, text, hint, changes)


def skip(name: str, text: str) -> Result:
    """It does not matter here, or cannot be seen; `text` says why."""
    return Result(name, Status.SKIP, text)
