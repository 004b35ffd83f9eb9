# SPDX-License-Identifier: MIT
"""Requests that a model answers: which one, and in which words its server is asked."""

from dataclasses import dataclass

from aiohttp import HttpVersion11, hdrs, web

from ..config import Config, Upstream
from ..errors import BadRequest, ExpectationFailed, MethodNotAllowed
from ..metrics import Visit
from ..switcher import Switcher
from . import body, cors, json_body, targets, websocket
from .access import Caller
from .answer import Answers
from .form import Form, is_form
from .headers import HANDSHAKE, passed
from .outgoing import Outgoing
from .relay import Relay
from .routes import READING, SOUNDS, Kind, Route
from .waiting import HEADER, WANTED, Waiting

_UNPACKED = (b"content-encoding",)
_SEE = "see 'upstream' in llmux.yaml"


@dataclass(slots=True)
class Call:
    """One request for a model. `target` is its path and query, as they were sent."""

    request: web.BaseRequest
    target: str
    route: Route
    caller: Caller
    visit: Visit


class Calls:
    """Finds the model of each call and has it served."""

    def __init__(self, switcher: Switcher, answers: Answers):
        self._switcher = switcher
        self._relay = Relay(switcher, answers)

    async def answer(self, call: Call) -> web.StreamResponse:
        """The whole of it. What reads the request is over before the answer passes: a thousand
        streams hold a thousand of each frame that waits for them, with what it has in hand."""
        headers = call.request.headers
        if (hdrs.ORIGIN in headers or cors.FETCH_SITE in headers) and not call.caller.known:
            cors.check_blind(call.request, self._switcher.config)
        with call.caller.turn():
            match call.route.kind:
                case Kind.REALTIME:
                    outgoing = self._realtime(call)
                case Kind.UPSTREAM:
                    found = await self._upstream(call)
                    if isinstance(found, web.Response):
                        return found
                    outgoing = found
                case _:
                    outgoing = await self._api(call)
            if outgoing.tunnel:
                limit = self._switcher.config.max_body
                return await self._relay.tunnel(call.request, call.visit, outgoing, limit)
            waiting = self._waiting(call) if outgoing.stream else None
            return await self._relay.serve(call.request, call.visit, outgoing, waiting)

    async def _api(self, call: Call) -> Outgoing:
        """A call of the API."""
        config = self._switcher.config
        request = call.request
        if hdrs.EXPECT in request.headers:
            await _invite_body(request, config.max_body)
        if is_form(request):
            form = Form(request, config.max_body)
            name = _resolve(config, call, await form.model() or targets.model(call.target))
            form.naming(config.models[name].engine_name)
            return _outgoing(call, call.target, form)
        raw = await body.whole(request, config.max_body)
        if not raw and request.method != hdrs.METH_POST:
            # Such as GET /v1/responses/ID?model=NAME.
            _resolve(config, call, targets.model(call.target))
            return _outgoing(call, call.target, raw)
        parsed = await json_body.read(raw)
        name = _resolve(config, call, parsed.model or targets.model(call.target))
        raw = parsed.naming(config.models[name].engine_name)
        return _outgoing(call, call.target, raw, stream=parsed.stream)

    def _realtime(self, call: Call) -> Outgoing:
        """A WebSocket, whose model the query names."""
        if not websocket.wanted(call.request):
            raise BadRequest("this route is for WebSockets", "send Upgrade: websocket")
        config = self._switcher.config
        cors.check_page(call.request, config)
        name = _resolve(config, call, targets.model(call.target))
        return _tunnel(call, targets.naming(call.target, config.models[name].engine_name))

    async def _upstream(self, call: Call) -> Outgoing | web.Response:
        """A request for the engine's own pages, which passes as it is."""
        config = self._switcher.config
        request = call.request
        name, path = targets.split(call.route.rest, config, call.caller.may_use)
        _resolve(config, call, name)
        if config.upstream is Upstream.READ:
            if request.method not in READING:
                raise MethodNotAllowed(f"/upstream takes GET, not {request.method}", _SEE)
            if websocket.wanted(request):
                raise MethodNotAllowed("/upstream takes no WebSockets", _SEE)
        query = call.target[len(call.target.partition("?")[0]) :]
        if not path:
            # The links of its pages are relative to the folder.
            location = f"/upstream/{call.route.rest}/{query}"
            return web.Response(status=308, headers={hdrs.LOCATION: location})
        if websocket.wanted(request):
            cors.check_page(request, config)
            return _tunnel(call, path + query)
        await _invite_body(request, config.max_body)
        return _outgoing(call, path + query, await body.whole(request, config.max_body))

    def _waiting(self, call: Call) -> Waiting | None:
        """For a client of an event stream that wants to hear something meanwhile."""
        if call.route.label in SOUNDS:
            return None
        asked = call.request.headers.get(HEADER, "").lower()
        if asked == WANTED or (not asked and self._switcher.config.waiting_comments):
            return Waiting(call.request, self._switcher, call.visit.model, call.route.api)
        return None


def _outgoing(call: Call, target: str, what: bytes | Form, *, stream: bool = False) -> Outgoing:
    # The body was decompressed as it was read.
    headers = passed(call.request.raw_headers, (*_UNPACKED, *call.caller.secret_headers))
    return Outgoing(
        call.request.method, target, headers, what, call.caller.priority, stream=stream
    )  # fmt: skip


def _tunnel(call: Call, target: str) -> Outgoing:
    headers = passed(call.request.raw_headers, (*HANDSHAKE, *call.caller.secret_headers))
    return Outgoing(
        call.request.method, target, headers, b"", call.caller.priority, tunnel=True
    )  # fmt: skip


def _resolve(config: Config, call: Call, asked: str) -> str:
    """The model, which the caller may use."""
    asked = asked or config.default_model
    if not asked:
        raise BadRequest("the request names no model", "give its name as 'model'")
    name = config.resolve(asked, call.caller.may_use)
    call.caller.check(name)
    call.visit.model = name
    return name


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
