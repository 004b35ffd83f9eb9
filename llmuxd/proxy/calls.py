# SPDX-License-Identifier: MIT
"""Requests that a model answers: which one, and in which words its server is asked."""

from aiohttp import HttpVersion11, hdrs, web

from ..config import Config, Upstream
from ..errors import BadRequest, ExpectationFailed, MethodNotAllowed
from ..metrics import Counts, Visit
from ..switcher import Switcher
from . import body, targets, websocket
from .form import Form
from .headers import passed
from .relay import Outgoing, Relay
from .routes import READING, Route

_UNPACKED = (hdrs.CONTENT_ENCODING.lower(),)


class Calls:
    """Finds the model of each request and has it served."""

    def __init__(self, switcher: Switcher, counts: Counts):
        self._switcher = switcher
        self._relay = Relay(switcher, counts)

    async def api(self, request: web.BaseRequest, target: str, visit: Visit) -> web.StreamResponse:
        """A call of the API."""
        config = self._switcher.config
        await _invite_body(request, config.max_body)
        if request.headers.get(hdrs.CONTENT_TYPE, "").startswith("multipart/form-data"):
            form = Form(request, config.max_body)
            name = visit.model = _resolve(config, await form.model() or targets.model(target))
            form.naming(config.models[name].engine_name)
            return await self._serve(request, visit, target, form)
        raw = await body.whole(request, config.max_body)
        if not raw and request.method != hdrs.METH_POST:
            # Such as GET /v1/responses/ID?model=NAME.
            visit.model = _resolve(config, targets.model(target))
            return await self._serve(request, visit, target, raw)
        parsed = body.parse(raw)
        name = visit.model = _resolve(config, parsed.model or targets.model(target))
        raw = parsed.naming(config.models[name].engine_name)
        return await self._serve(request, visit, target, raw)

    async def realtime(
        self, request: web.BaseRequest, target: str, visit: Visit
    ) -> web.StreamResponse:
        """A WebSocket, whose model the query names."""
        if not websocket.wanted(request):
            raise BadRequest("this route is for WebSockets", "send Upgrade: websocket")
        config = self._switcher.config
        visit.model = _resolve(config, targets.model(target))
        return await self._relay.tunnel(request, visit, target, config.max_body)

    async def upstream(
        self, request: web.BaseRequest, route: Route, target: str, visit: Visit
    ) -> web.StreamResponse:
        """A request for the engine's own pages, which passes as it is."""
        config = self._switcher.config
        visit.model, path = targets.split(route.rest, config)
        if config.upstream is Upstream.READ and request.method not in READING:
            raise MethodNotAllowed(
                f"/upstream takes GET, not {request.method}", "see 'upstream' in llmux.yaml"
            )
        query = target[len(target.partition("?")[0]) :]
        if not path:
            # The links of its pages are relative to the folder.
            return web.Response(status=308, headers={"Location": f"/upstream/{route.rest}/{query}"})
        if websocket.wanted(request):
            if config.upstream is Upstream.READ:
                raise MethodNotAllowed(
                    "/upstream takes no WebSockets", "see 'upstream' in llmux.yaml"
                )
            return await self._relay.tunnel(request, visit, path + query, config.max_body)
        await _invite_body(request, config.max_body)
        raw = await body.whole(request, config.max_body)
        return await self._serve(request, visit, path + query, raw)

    async def _serve(
        self, request: web.BaseRequest, visit: Visit, target: str, what: bytes | Form
    ) -> web.StreamResponse:
        # The body was decompressed as it was read.
        headers = passed(request.headers, _UNPACKED)
        if isinstance(what, Form) and what.length is not None:
            headers[hdrs.CONTENT_LENGTH] = str(what.length)
        outgoing = Outgoing(request.method, target, headers, what)
        return await self._relay.serve(request, visit, outgoing)


def _resolve(config: Config, asked: str) -> str:
    asked = asked or config.default_model
    if not asked:
        raise BadRequest("the request names no model", "give its name as 'model'")
    return config.resolve(asked)


async def _invite_body(request: web.BaseRequest, limit: int) -> None:
    """Answer `Expect: 100-continue`, unless the body would be refused anyhow."""
    if hdrs.EXPECT not in request.headers or request.version < HttpVersion11:
        return
    if request.headers[hdrs.EXPECT].lower() != "100-continue":
        raise ExpectationFailed(f"cannot do {request.headers[hdrs.EXPECT]!r}")
    body.check_length(request, limit)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # What was written so far is no part of the answer: aiohttp looks here whether one has begun.
    request.writer.output_size = 0
