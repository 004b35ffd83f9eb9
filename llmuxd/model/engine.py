# SPDX-License-Identifier: MIT
"""What can be asked of the server in a model's container."""

import http
import json
import os
import select
import time

from ..config import Engine, ModelConfig
from .activation import Activation
from .server import WrongAnswer, ask

# No engine tells that it became healthy, so it is asked; the pause grows with the wait, so that a
# restore of 0.5 s is noticed within 2 % of its time and a cold start costs a request a second.
MIN_PAUSE = 0.01
MAX_PAUSE = 1.0
PAUSE_SHARE = 0.02
PROBE_TIMEOUT = 5.0

# One token of a fixed prompt, the likeliest: the same before and after for as long as the weights
# and the engine are sound. An answer takes milliseconds; a GPU's first after a restore, a second.
_CANARY_ENGINES = (Engine.VLLM, Engine.LLAMA_SERVER)


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


def has_canary(model: ModelConfig) -> bool:
    """Whether the model's server is to be asked its canary."""
    return model.canary and model.engine in _CANARY_ENGINES


def canary_of(run: Activation) -> str:
    """What the server of this run answers now."""
    return canary(run.port, run.canary_prompt)


def canary(port: int, prompt: str) -> str:
    """The first token that the server answers to `prompt`, the likeliest.

    Empty where it has no such API. A server of embeddings, say, refuses completions by
    a status from 400 on; WrongAnswer where it fails (500 on), or does not answer at all.
    """
    status, models = ask(port, "GET", "/v1/models")
    served = models.get("data") if status == http.HTTPStatus.OK else None
    if not served:
        return ""
    body = {
        "model": served[0]["id"], "prompt": prompt, "max_tokens": 1, "temperature": 0,
    }  # fmt: skip
    status, answer = ask(port, "POST", "/v1/completions", body)
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise WrongAnswer(f"it answers its canary with status {status}")
    if status != http.HTTPStatus.OK:
        return ""
    try:
        return json.dumps({"text": answer["choices"][0]["text"]})
    except (KeyError, IndexError, TypeError):
        raise WrongAnswer("it answers its canary with what is no completion") from None
