# SPDX-License-Identifier: MIT
"""Accepts connections and answers requests."""

import contextlib
import logging
import socket
from collections.abc import Awaitable, Collection

from aiohttp import hdrs, web

from ..errors import BadRequest, Internal, KeyForbids, LlmuxError, Unauthorized
from ..gpus import Gpus
from ..keys import Key
from ..metrics import CONTENT_TYPE, Counts, Lag, Page, Visit
from ..switcher import Switcher
from . import cors, models, routes, shapes, targets
from .access import Access, Caller
from .answer import Answers
from .arrivals import Arrivals
from .calls import Call, Calls
from .connection import Server
from .health import Health
from .moments import now
from .routes import Kind, Route

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
        """Answer, and count how it went; every failure in the API's own shape."""
        visit = Visit("other", now())
        status = _LEFT
        response: web.StreamResponse | None
        target = targets.of(request)
        try:
            try:
                response = cors.preflight(request, self._switcher.config)
                if response is None:
                    response = await self._answer(request, target, visit)
            except LlmuxError as error:
                # No name for it beyond this clause: it holds this frame, which would hold it.
                response = _told(request, target, error)
            except ConnectionError:
                # The client left in the very moment in which it was to be answered.
                response = _told(request, target, BadRequest("the client left"))
            except Exception:
                # Bugs stay in the journal.
                log.exception("%s %s failed", request.method, request.path)
                response = _told(request, target, Internal("internal error"))
            if isinstance(response, web.Response):
                response.headers.update(cors.granted(request, self._switcher.config))
            status = response.status
            return response
        finally:
            self._counts.answered(visit, status, now())

    def _answer(
        self, request: web.BaseRequest, target: str, visit: Visit
    ) -> Awaitable[web.StreamResponse]:
        """By whom it is for. No coroutine: a thousand streams would hold a thousand of them."""
        route = routes.match(request.method, target.partition("?")[0])
        visit.route = route.label
        if route.kind is Kind.HEALTH:
            return self._tell_health(request)
        caller = self._access.caller(request)
        match route.kind:
            case Kind.METRICS:
                caller.check_metrics()
                return self._tell_metrics()
            case Kind.MODELS | Kind.MODEL:
                return self._tell_models(route, caller)
            case _:
                return self._calls.answer(Call(request, target, route, caller, visit))

    async def _tell_health(self, request: web.BaseRequest) -> web.Response:
        problems = self._health.problems()
        if not problems:
            return web.json_response({"status": "ok"})
        told: dict[str, object] = {"status": "failing"}
        # A load balancer has no key; what the problems are has the models' names in it.
        with contextlib.suppress(Unauthorized, KeyForbids):
            self._access.caller(request).check_metrics()
            told["problems"] = problems
        return web.json_response(told, status=503)

    async def _tell_metrics(self) -> web.Response:
        return web.Response(body=await self._page.text(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

    async def _tell_models(self, route: Route, caller: Caller) -> web.Response:
        if route.kind is Kind.MODEL:
            return web.json_response(models.entry(self._switcher, caller, route.rest))
        return web.json_response(models.listing(self._switcher, caller))


def _told(request: web.BaseRequest, target: str, error: LlmuxError) -> web.Response:
    """The error in the API's own shape; where an answer has begun already, the connection ends."""
    if request.writer.output_size and request.transport is not None:
        # A second head in the midst of it would be taken for a part of the answer.
        request.transport.abort()
    return shapes.response_of(routes.api_of(target), error)
