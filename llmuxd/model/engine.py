# SPDX-License-Identifier: MIT
"""Whether the server in a model's container is healthy."""

import os
import select
import time

from ..config import ModelConfig

# No engine tells that it became healthy, so it is asked; the pause grows with the wait, so that a
# restore of 0.5 s is noticed within 2 % of its time and a cold start costs a request a second.
MIN_PAUSE = 0.01
MAX_PAUSE = 1.0
PAUSE_SHARE = 0.02
PROBE_TIMEOUT = 5.0


class EngineDied(Exception):
    """The container ended before it was healthy."""


class EngineTimeout(Exception):
    """The server was not healthy in time."""


def wait_healthy(model: ModelConfig, port: int, conmon: int, timeout: float) -> None:
    """Return once the server answers its health path with 200.

    `conmon` is the container's monitor: it ends with the container, and its pidfd makes the
    pause between two questions end at once.
    """
    try:
        pidfd = os.pidfd_open(conmon)
    except ProcessLookupError:
        raise EngineDied("the container ended at once") from None
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    begin = time.monotonic()
    try:
        while not healthy(port, model.health):
            waited = time.monotonic() - begin
            if waited > timeout:
                raise EngineTimeout(f"it did not become healthy within {timeout:g} s")
            pause = min(max(waited * PAUSE_SHARE, MIN_PAUSE), MAX_PAUSE)
            if poll.poll(pause * 1000):
                raise EngineDied("the container ended before it was healthy")
    finally:
        os.close(pidfd)


def healthy(port: int, path: str) -> bool:
    """Whether the server on 127.0.0.1:`port` answers `path` with 200 now."""
    import http.client  # late, as in server.py

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
