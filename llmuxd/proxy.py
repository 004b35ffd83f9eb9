# SPDX-License-Identifier: MIT
"""The HTTP endpoint: reads which model a request names, has it serve, passes bytes through."""

import asyncio
import errno
import io
import json
import logging
import socket
from collections.abc import Awaitable, Callable

import aiohttp
import yarl
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from .backend import Backend, BackendGone
from .errors import BackendLost, BadRequest, BodyTooLarge, Internal, LlmuxError, TimedOut
from .state import State
from .switcher import Switcher

log = logging.getLogger(__name__)

# RFC 9110, 7.6.1: these belong to one connection and are not passed on. Content-Length is
# made anew for the body that is in hand.
_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
        "te", "trailer", "transfer-encoding", "upgrade", "content-length", "host", "expect",
    }
)  # fmt: skip

# Connections that wait to be accepted, as in llmuxd.socket.
BACKLOG = 4096
# Requests in flight end in their own time; systemd's TimeoutStopSec is what bounds it. In seconds.
PATIENCE = 86400.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Proxy:
    """The server. `start` it on a socket, `close` it to let requests in flight end."""

    def __init__(self, switcher: Switcher):
        self._switcher = switcher
        # The limit is kept where the body is read: it may change with a reload.
        app = web.Application(middlewares=[_errors], client_max_size=0)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/v1/models/{name:.+}", self._get_model)
        app.router.add_post("/v1/{route:.+}", self._forward)
        # Without cancellation, a client that left is noticed only at the next byte for it.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=PATIENCE
        )

    async def start(self, sockets: list[socket.socket]) -> None:
        """Accept connections on `sockets`, which listen already."""
        await self._runner.setup()
        for sock in sockets:
            await web.SockSite(self._runner, sock, backlog=BACKLOG).start()

    async def close(self) -> None:
        """Accept no more, let requests in flight end."""
        await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _list_models(self, request: web.Request) -> web.Response:
        config = self._switcher.config
        entries = [self._entry(name, name) for name in config.models]
        entries += [self._entry(alias, name) for alias, name in config.aliases.items()]
        return web.json_response({"object": "list", "data": entries})

    async def _get_model(self, request: web.Request) -> web.Response:
        asked = request.match_info["name"]
        return web.json_response(self._entry(asked, self._switcher.config.resolve(asked)))

    def _entry(self, asked: str, name: str) -> dict[str, object]:
        state = self._switcher.state(name) if name in self._switcher.names() else State.COLD
        return {
            "id": asked, "object": "model", "created": 0, "owned_by": "llmuxd",
            "root": name, "state": state.value,
        }  # fmt: skip

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, self._switcher.config.max_body)
        asked, payload = _model_of(body)
        name = self._switcher.config.resolve(asked)
        if asked != name:
            # The engine knows itself by its full name only.
            body = json.dumps(payload | {"model": name}).encode()
        deadline = self._switcher.deadline(name)
        try:
            return await self._serve(request, name, body, deadline)
        except (aiohttp.ClientConnectorError, BackendGone):
            # It never had the request: its server died, and systemd has not told yet.
            pass
        try:
            return await self._serve(request, name, body, deadline)
        except (aiohttp.ClientConnectorError, BackendGone) as error:
            raise _lost(error) from None

    async def _serve(
        self, request: web.Request, name: str, body: bytes, deadline: float
    ) -> web.StreamResponse:
        async with self._switcher.request(name, deadline) as backend:
            try:
                upstream = await self._begin(request, backend, body, deadline)
            except aiohttp.ClientConnectorError as error:
                # Any other error is ours, such as too many open files: the server is well.
                if error.os_error.errno == errno.ECONNREFUSED:
                    await self._switcher.lost(name, backend)
                raise
            except BackendGone:
                raise
            except (aiohttp.ClientError, OSError) as error:
                raise _lost(error) from None
            return await self._pass_on(request, upstream)

    async def _pass_on(
        self, request: web.Request, upstream: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        async with upstream:
            response = web.StreamResponse(
                status=upstream.status, reason=upstream.reason, headers=_passed(upstream.headers)
            )
            if upstream.content_length is not None:
                response.content_length = upstream.content_length
            await response.prepare(request)
            try:
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
            except (aiohttp.ClientError, OSError) as error:
                # The status is out: a broken stream is the only honest end.
                log.warning("%s: the stream broke: %s", request.path, _cause(error))
                if request.transport is not None:
                    request.transport.abort()
                return response
            await response.write_eof()
            return response

    async def _begin(
        self, request: web.Request, backend: Backend, body: bytes, deadline: float
    ) -> aiohttp.ClientResponse:
        """The answer's head, in time: a server may accept a request and never answer it."""
        limit = asyncio.timeout_at(deadline)
        try:
            async with limit:
                return await self._send(request, backend, body)
        except TimeoutError:
            if limit.expired():
                raise TimedOut("the model's server did not begin to answer in time") from None
            raise

    async def _send(
        self, request: web.Request, backend: Backend, body: bytes
    ) -> aiohttp.ClientResponse:
        headers = _passed(request.headers)
        # The body was decompressed as it was read.
        headers.popall("Content-Encoding", None)

        async def once() -> aiohttp.ClientResponse:
            return await backend.session.request(
                request.method,
                # As it was sent, without a second opinion on what needs quoting.
                yarl.URL(backend.endpoint + request.raw_path, encoded=True),
                data=io.BytesIO(body),
                headers=headers,
                allow_redirects=False,
            )

        try:
            return await once()
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError) or not _was_closed(error):
                raise
            # Most likely the server closed an idle connection just as it was used. Where it died
            # of this very request instead, the connection is refused, and that is the end of it.
            try:
                return await once()
            except aiohttp.ClientConnectorError:
                raise _lost(error) from None


def _was_closed(error: aiohttp.ClientError) -> bool:
    """Whether the other side closed the connection before it answered."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return True
    return isinstance(error, OSError) and error.errno in (errno.ECONNRESET, errno.EPIPE)


def _lost(error: Exception) -> BackendLost:
    return BackendLost(
        f"the model's server went away before it answered: {_cause(error)}", "try again"
    )


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure in the API's own shape; bugs stay in the journal."""
    try:
        return await handler(request)
    except LlmuxError as error:
        return _error_response(error)
    except web.HTTPException as error:
        hint = "see GET /v1/models" if error.status == 404 else ""
        what = f"{error.status} {error.reason}: {request.method} {request.path}"
        wrapped = BadRequest(what, hint)
        return _error_response(wrapped, error.status)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _error_response(Internal("internal error"))


def _error_response(error: LlmuxError, status: int | None = None) -> web.Response:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return web.json_response(
        {
            "error": {
                "message": str(error), "type": error.openai_type, "param": None,
                "code": error.openai_code,
            }
        },
        status=error.http_status if status is None else status,
        headers=headers,
    )  # fmt: skip


async def _body(request: web.Request, limit: int) -> bytes:
    """The whole body, decompressed where it came compressed; `limit` is in bytes."""
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > limit:
                raise _too_large(limit)
    except (ValueError, aiohttp.ClientError, web.HTTPException) as error:
        raise BadRequest(f"the request's body cannot be read: {_cause(error)}") from None
    return bytes(body)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the request's body has more than {limit} bytes", "max_body in llmux.yaml is the limit"
    )


def _model_of(body: bytes) -> tuple[str, dict[str, object]]:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the request's body is not valid JSON") from None
    if not isinstance(payload, dict):
        raise BadRequest("the request's body is not a JSON object")
    model = payload.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("the request names no model", "give its name as 'model'")
    return model, payload


def _passed(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    lists = headers.getall("Connection", [])
    named = {token.strip().lower() for line in lists for token in line.split(",")}
    return CIMultiDict(
        (key, value)
        for key, value in headers.items()
        if key.lower() not in _HOP_BY_HOP and key.lower() not in named
    )


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
