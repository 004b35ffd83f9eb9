# SPDX-License-Identifier: MIT
"""The clock of everything here."""

import asyncio


def now() -> float:
    """The running loop's, in seconds."""
    return asyncio.get_running_loop().time()
