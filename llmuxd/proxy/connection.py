# SPDX-License-Identifier: MIT
"""aiohttp's server, told what to do with clients that send no request, or none that is one."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import Any, cast

from aiohttp import web

from .. import garbage
from ..errors import BadRequest
from ..short import shorten
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


# aiohttp's method by which one request is handled; None where one day it has another name.
_HANDLING = getattr(getattr(web.RequestHandler, "_handle_request", None), "__code__", None)


class _SameTask:
    """An event loop for aiohttp's server, which has each request handled by a task of its own. Here
    it is by the connection's: there is no context to be copied, and another task is two more turns
    of the loop, a tenth of all that a request takes. From Python 3.12 on aiohttp spares one of
    them itself, in a way that needs the true loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self.create_future = loop.create_future
        self.time = loop.time
        self.call_at = loop.call_at

    def __hash__(self) -> int:
        return hash(self._loop)

    def __eq__(self, other: object) -> bool:
        # asyncio.current_task looks for the loop that it is given.
        return other is self._loop or other is self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def create_task(self, work: "CoroutineType[Any, Any, Any]", **more: Any) -> Awaitable[Any]:
        """What is awaited at once needs no task; a connection's own work is none of that."""
        return work if work.cr_code is _HANDLING else self._loop.create_task(work, **more)


def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.get_running_loop()
    same = _SameTask(loop) if sys.version_info < (3, 12) else loop
    return cast(asyncio.AbstractEventLoop, same)


class _Connection(web.RequestHandler):
    """One client's."""

    __slots__ = ("_impatience", "_slow")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request, and no longer than is right."""
        shorten(self)
        self._slow = False
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._impatience = loop.call_later(HEAD_TIMEOUT, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nobody is there to wait for."""
        self._impatience.cancel()
        garbage.let_go(self.transport)
        super().connection_lost(exc)

    def pause_reading(self) -> None:
        """The client is faster than who reads."""
        self._slow = True
        super().pause_reading()

    def resume_reading(self, *args: Any, **kwargs: Any) -> None:
        """Only of a connection that was paused once: see Line."""
        if self._slow:
            super().resume_reading(*args, **kwargs)

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
            loop=_loop(),
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
