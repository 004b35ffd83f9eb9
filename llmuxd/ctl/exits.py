# SPDX-License-Identifier: MIT
"""Exit statuses of llmuxctl; llmuxctl(1) documents them."""

from enum import IntEnum


class Exit(IntEnum):
    """What a command ends with."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130
