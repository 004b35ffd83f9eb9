# SPDX-License-Identifier: MIT
"""What can go wrong with the machine that is not a bug in it."""


class MachineError(Exception):
    """A fault that its reader can do something about: one line, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Unavailable(MachineError):
    """An image or a model that cannot be had on this host, the rest can do without."""
