# SPDX-License-Identifier: MIT
"""Errors in the shape that the API's own client understands."""

import json
import math

from aiohttp import web

from ..errors import LlmuxError
from .routes import Api

# https://docs.anthropic.com/en/api/errors
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_of(api: Api, error: LlmuxError) -> dict[str, object]:
    """The error as the API's JSON object."""
    if api is Api.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(error.http_status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": str(error)}}
    return {
        "error": {
            "message": str(error), "type": error.openai_type, "param": None,
            "code": error.openai_code,
        }
    }  # fmt: skip


def response_of(api: Api, error: LlmuxError) -> web.Response:
    """The error as a whole answer."""
    headers = {}
    if error.retry_after is not None:
        # Who comes a moment too soon is refused again.
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response(error_of(api, error), status=error.http_status, headers=headers)


def event_of(api: Api, error: LlmuxError) -> bytes:
    """The error as a server-sent event, for a stream that has begun."""
    data = f"data: {json.dumps(error_of(api, error))}\n\n"
    return (f"event: error\n{data}" if api is Api.ANTHROPIC else data).encode()
