# SPDX-License-Identifier: MIT
"""aiohttp's server, told what to do with clients that send no request, or none that is one."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from .. import garbage
from ..errors import BadRequest
from . import shapes
from .routes import Api

log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# From the connection to the end of the first request's head, in seconds; nginx's
# client_header_timeout. A client that sends a byte a minute would hold its connection for ever.
HEAD_TIMEOUT = 60.0
# From an answer to the end of the next request's head, in seconds; nginx's keepalive_timeout.
KEEPALIVE = 75.0
# How long a client may go on sending what was refused, until its connection is closed, in seconds.
LINGER = 2.0


class _Connection(web.RequestHandler):
    """One client's."""

    __slots__ = ("_impatience",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request, and no longer than is right."""
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._impatience = loop.call_later(HEAD_TIMEOUT, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nobody is there to wait for."""
        self._impatience.cancel()
        garbage.let_go(self.transport)
        super().connection_lost(exc)

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """What a client sent, as a rule; what we did wrong is caught where requests are handled."""
        log.debug(*args, **kwargs)

    def asked(self) -> None:
        """A request has come."""
        self._impatience.cancel()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP; the parent class would log a traceback for each."""
        # Its further lines are the request itself, a key in it perhaps.
        what = next(iter((message or "").split("\n")), "").strip(" :")
        error = BadRequest(f"no valid HTTP request: {what or 'it cannot be understood'}")
        response = shapes.response_of(Api.OPENAI, error)
        response.set_status(status)
        response.force_close()
        return response


class Server(web.Server):
    """Hands each request to `handler`."""

    def __init__(self, handler: Handler):
        # Without cancellation, a client that left is noticed only at the next byte for it.
        super().__init__(
            handler,
            request_factory=self._request,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE,
            lingering_time=LINGER,
        )

    def __call__(self) -> web.RequestHandler:
        """A new connection's."""
        return _Connection(self, loop=self._loop, **self._kwargs)

    def _request(
        self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any
    ) -> web.BaseRequest:
        protocol.asked()
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop)
