# SPDX-License-Identifier: MIT
"""A model's server that goes away."""

import errno

import aiohttp

from ..errors import BackendLost


def lost(error: Exception) -> BackendLost:
    """The server is gone, and what was asked of it with it."""
    return BackendLost(
        f"the model's server went away before it answered: {cause(error)}", "try again"
    )


def was_closed(error: Exception) -> bool:
    """Whether the other side closed the connection before it answered."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return True
    return isinstance(error, OSError) and error.errno in (errno.ECONNRESET, errno.EPIPE)


def cause(error: Exception) -> str:
    """The error's words, or at least its name."""
    return str(error) or type(error).__name__
