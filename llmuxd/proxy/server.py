# SPDX-License-Identifier: MIT
"""Accepts connections and answers requests."""

import logging
import socket

from aiohttp import web

from ..errors import BadRequest, Internal, LlmuxError
from ..switcher import Switcher
from . import models, routes, shapes, targets
from .calls import Calls
from .connection import Server
from .routes import Kind

log = logging.getLogger(__name__)

# Connections that wait to be accepted, as in llmuxd.socket.
BACKLOG = 4096
# Requests in flight end in their own time; systemd's TimeoutStopSec is what bounds it. In seconds.
PATIENCE = 86400.0


class Proxy:
    """The server. `start` it on a socket, `close` it to let requests in flight end."""

    def __init__(self, switcher: Switcher):
        self._switcher = switcher
        self._calls = Calls(switcher)
        self._runner: web.ServerRunner | None = None

    async def start(self, sockets: list[socket.socket]) -> None:
        """Accept connections on `sockets`, which listen already."""
        self._runner = web.ServerRunner(Server(self._handle), shutdown_timeout=PATIENCE)
        await self._runner.setup()
        for sock in sockets:
            await web.SockSite(self._runner, sock, backlog=BACKLOG).start()

    async def close(self) -> None:
        """Accept no more, let requests in flight end."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Every failure in the API's own shape; bugs stay in the journal."""
        target = targets.of(request)
        try:
            return await self._answer(request, target)
        except LlmuxError as error:
            told = error
        except ConnectionError:
            # The client left in the very moment in which it was to be answered.
            told = BadRequest("the client left")
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            told = Internal("internal error")
        return shapes.response_of(routes.api_of(target), told)

    async def _answer(self, request: web.BaseRequest, target: str) -> web.StreamResponse:
        route = routes.match(request.method, target.partition("?")[0])
        match route.kind:
            case Kind.CALL:
                return await self._calls.api(request, target)
            case Kind.HEALTH:
                return web.json_response({"status": "ok"})
            case Kind.MODELS:
                return web.json_response(models.listing(self._switcher))
            case Kind.MODEL:
                return web.json_response(models.entry(self._switcher, route.rest))
            case Kind.REALTIME:
                return await self._calls.realtime(request, target)
            case Kind.UPSTREAM:
                return await self._calls.upstream(request, route, target)
