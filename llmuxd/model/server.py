# SPDX-License-Identifier: MIT
"""One question to the server in a model's container, and its answer."""

import http
import json
from typing import Any

# A GPU's first answer after a restore takes a second, one token otherwise milliseconds.
TIMEOUT = 60.0


class WrongAnswer(Exception):
    """The server does not answer, or not as it should."""


def ask(
    port: int, method: str, path: str, body: object = None, timeout: float = TIMEOUT
) -> tuple[int, dict[str, Any]]:
    """Ask the server on 127.0.0.1:`port`; its status, and the object that came with a 200.

    WrongAnswer where nothing comes, or no JSON.
    """
    text = None if body is None else json.dumps(body)
    status, raw = fetch(port, method, path, text, timeout)
    try:
        value = json.loads(raw or b"{}") if status == http.HTTPStatus.OK else {}
    except ValueError as error:
        raise WrongAnswer(f"it does not answer {path}: {error}") from None
    return status, value if isinstance(value, dict) else {}


def fetch(
    port: int, method: str, path: str, body: str | None = None, timeout: float = TIMEOUT
) -> tuple[int, bytes]:
    """The same with the bytes of the body that it sends, and of the answer."""
    # Half of what Python loads for it: by then it is (starting.py), while podman restores.
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        sent = None if body is None else body.encode()
        connection.request(method, path, sent, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise WrongAnswer(f"it does not answer {path}: {error or 'no reply'}") from None
    finally:
        connection.close()
