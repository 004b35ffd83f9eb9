# SPDX-License-Identifier: MIT
"""What can be asked of the server in a model's container."""

import http.client
import json
import os
import select
import time
from typing import Any

from ..config import Engine, ModelConfig

# No engine tells that it became healthy, so it is asked; the pause grows with the wait, so that a
# restore of 0.5 s is noticed within 2 % of its time and a cold start costs a request a second.
MIN_PAUSE = 0.01
MAX_PAUSE = 1.0
PAUSE_SHARE = 0.02
PROBE_TIMEOUT = 5.0

# One token of a fixed prompt, the likeliest: the same before and after for as long as the weights
# and the engine are sound. An answer takes milliseconds; a GPU's first after a restore, a second.
CANARY_PROMPT = "The quick brown fox jumps over the lazy"
CANARY_TIMEOUT = 60.0
_CANARY_ENGINES = (Engine.VLLM, Engine.LLAMA_SERVER)


class EngineDied(Exception):
    """The container ended before it was healthy."""


class EngineTimeout(Exception):
    """The server was not healthy in time."""


class WrongAnswer(Exception):
    """The server does not answer its canary, or not as it should."""


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


def canary(port: int) -> str:
    """The server's answer to the fixed request; empty where it has no such API.

    A server of embeddings, say, refuses completions by a status from 400 on; WrongAnswer where
    it fails (500 on), or does not answer at all.
    """
    status, models = _ask(port, "GET", "/v1/models")
    served = models.get("data") if status == http.HTTPStatus.OK else None
    if not served:
        return ""
    body = {
        "model": served[0]["id"], "prompt": CANARY_PROMPT, "max_tokens": 1, "temperature": 0,
    }  # fmt: skip
    status, answer = _ask(port, "POST", "/v1/completions", body)
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise WrongAnswer(f"it answers its canary with status {status}")
    if status != http.HTTPStatus.OK:
        return ""
    try:
        return json.dumps({"text": answer["choices"][0]["text"]})
    except (KeyError, IndexError, TypeError):
        raise WrongAnswer("it answers its canary with what is no completion") from None


def can_sleep(port: int) -> bool:
    """Whether the server has vLLM's sleep mode: --enable-sleep-mode, VLLM_SERVER_DEV_MODE=1."""
    status, answer = _ask(port, "GET", "/is_sleeping")
    return status == http.HTTPStatus.OK and "is_sleeping" in answer


def sleep(port: int) -> bool:
    """Have vLLM drop its KV cache and move its weights to pinned memory, where it can.

    Level 1 suits parking: on an H100 a 3B model came back 0.4 s sooner than after level 2.
    """
    return can_sleep(port) and _done(port, "/sleep?level=1", "sleep")


def wake_up(port: int) -> None:
    """The reverse; what was cached of prompts is not kept."""
    _done(port, "/wake_up", "wake up")


def _done(port: int, path: str, what: str) -> bool:
    status, _ = _ask(port, "POST", path)
    if status != http.HTTPStatus.OK:
        raise WrongAnswer(f"it does not {what}: status {status}")
    return True


def _ask(port: int, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CANARY_TIMEOUT)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"})
        response = connection.getresponse()
        raw = response.read()
        value = json.loads(raw or b"{}") if response.status == http.HTTPStatus.OK else {}
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WrongAnswer(f"it does not answer {path}: {error or 'no reply'}") from None
    finally:
        connection.close()
    return response.status, value if isinstance(value, dict) else {}
