# SPDX-License-Identifier: MIT
"""Accepts connections and answers requests."""

import asyncio
import logging
import socket
from collections.abc import Collection

from aiohttp import hdrs, web

from ..errors import BadRequest, Internal, LlmuxError
from ..gpus import Gpus
from ..keys import Key
from ..metrics import CONTENT_TYPE, Counts, Lag, Page, Visit
from ..switcher import Switcher
from . import models, routes, shapes, targets
from .access import Access
from .answer import Answers
from .arrivals import Arrivals
from .calls import Call, Calls
from .connection import Server
from .health import Health
from .routes import Kind

log = logging.getLogger(__name__)

# Connections that wait to be accepted, as in llmuxd.socket.
BACKLOG = 4096
# Requests in flight end in their own time; systemd's TimeoutStopSec is what bounds it. In seconds.
PATIENCE = 86400.0
# What nginx calls a client that did not wait for its answer.
_LEFT = 499


class Proxy:
    """The server. `start` it on a socket, `close` it to let requests in flight end."""

    def __init__(self, switcher: Switcher, gpus: Gpus, keys: Collection[Key] | None):
        self._switcher = switcher
        self._access = Access(keys)
        self._counts = Counts()
        self._page = Page(switcher, gpus, self._counts)
        self._lag = Lag(self._counts.lag)
        arrivals = Arrivals(switcher)
        self._health = Health(switcher, arrivals)
        self._calls = Calls(switcher, Answers(switcher, self._counts, arrivals))
        switcher.learnt.append(self._counts.moved)
        self._runner: web.ServerRunner | None = None

    def take_keys(self, keys: Collection[Key] | None) -> None:
        """These API keys hold from now on; None: nobody needs one."""
        self._access.take(keys)

    async def start(self, sockets: list[socket.socket]) -> None:
        """Accept connections on `sockets`, which listen already."""
        self._runner = web.ServerRunner(Server(self._handle), shutdown_timeout=PATIENCE)
        await self._runner.setup()
        self._lag.start()
        for sock in sockets:
            await web.SockSite(self._runner, sock, backlog=BACKLOG).start()

    async def close(self) -> None:
        """Accept no more, let requests in flight end."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._lag.stop()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer, and count how it went."""
        clock = asyncio.get_running_loop().time
        visit = Visit("other", clock())
        status = _LEFT
        try:
            response = await self._answer_or_tell(request, visit)
            status = response.status
            return response
        finally:
            self._counts.answered(visit, status, clock())

    async def _answer_or_tell(self, request: web.BaseRequest, visit: Visit) -> web.StreamResponse:
        """Every failure in the API's own shape; bugs stay in the journal."""
        target = targets.of(request)
        api = routes.api_of(target)
        try:
            return await self._answer(request, target, visit)
        except LlmuxError as error:
            # No name for it beyond this clause: it holds this frame, which would hold it.
            return shapes.response_of(api, error)
        except ConnectionError:
            # The client left in the very moment in which it was to be answered.
            return shapes.response_of(api, BadRequest("the client left"))
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return shapes.response_of(api, Internal("internal error"))

    async def _answer(
        self, request: web.BaseRequest, target: str, visit: Visit
    ) -> web.StreamResponse:
        route = routes.match(request.method, target.partition("?")[0])
        visit.route = route.label
        if route.kind is Kind.HEALTH:
            return self._tell_health()
        caller = self._access.caller(request)
        match route.kind:
            case Kind.METRICS:
                return await self._tell_metrics()
            case Kind.MODELS:
                return web.json_response(models.listing(self._switcher, caller))
            case Kind.MODEL:
                return web.json_response(models.entry(self._switcher, caller, route.rest))
            case _:
                return await self._call(Call(request, target, route, caller, visit))

    async def _call(self, call: Call) -> web.StreamResponse:
        with call.caller.turn():
            match call.route.kind:
                case Kind.REALTIME:
                    return await self._calls.realtime(call)
                case Kind.UPSTREAM:
                    return await self._calls.upstream(call)
                case _:
                    return await self._calls.api(call)

    def _tell_health(self) -> web.Response:
        problems = self._health.problems()
        if not problems:
            return web.json_response({"status": "ok"})
        return web.json_response({"status": "failing", "problems": problems}, status=503)

    async def _tell_metrics(self) -> web.Response:
        return web.Response(body=await self._page.text(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})
