# SPDX-License-Identifier: MIT
"""Passes a request to a model's server, and its answer back, as it comes."""

import asyncio
import errno
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import yarl
from aiohttp import hdrs, web
from multidict import CIMultiDict

from ..backend import Backend, BackendGone
from ..errors import TimedOut
from ..metrics import Counts, Visit
from ..switcher import Switcher
from . import websocket
from .form import Form
from .headers import passed
from .loss import cause, lost, was_closed
from .usage import Tail

log = logging.getLogger(__name__)

# From here on aiohttp wants a file, which it writes in pieces.
_LARGE = 1 << 20
# An answer of so many bytes is passed on whole: its head and body leave in one packet, and a
# server that dies in the middle of it is a clean error.
_SHORT = 64 * 1024


@dataclass(slots=True)
class Outgoing:
    """What the model's server is to get. `target` is the path and query, as they are sent."""

    method: str
    target: str
    headers: CIMultiDict[str]
    body: bytes | Form = b""
    priority: int = 0

    @property
    def data(self) -> bytes | io.BytesIO | AsyncIterator[bytes] | None:
        """The body in the form in which aiohttp sends it best."""
        if isinstance(self.body, Form):
            return self.body.chunks()
        if len(self.body) >= _LARGE:
            return io.BytesIO(self.body)
        return self.body or None

    @property
    def replayable(self) -> bool:
        """Whether it can be sent again."""
        return not isinstance(self.body, Form) or self.body.replayable


Exchange = Callable[[Backend], Awaitable[web.StreamResponse]]


class Relay:
    """Sends each request to the model that it is for, once that serves."""

    def __init__(self, switcher: Switcher, counts: Counts):
        self._switcher = switcher
        self._counts = counts

    async def serve(
        self, request: web.BaseRequest, visit: Visit, outgoing: Outgoing
    ) -> web.StreamResponse:
        """Have the visit's model answer `request`."""
        deadline = self._switcher.deadline(visit.model)

        async def exchange(backend: Backend) -> web.StreamResponse:
            async with await _begin(backend, outgoing, deadline) as upstream:
                visit.first_byte = now()
                return await self._pass_on(request, visit, upstream)

        return await self._with_model(visit, outgoing, deadline, exchange)

    async def tunnel(
        self, request: web.BaseRequest, visit: Visit, outgoing: Outgoing, limit: int
    ) -> web.StreamResponse:
        """Open a WebSocket between the client and the visit's model."""

        async def exchange(backend: Backend) -> web.StreamResponse:
            return await websocket.tunnel(
                request, backend, outgoing.target, outgoing.headers, limit
            )

        deadline = self._switcher.deadline(visit.model)
        return await self._with_model(visit, outgoing, deadline, exchange)

    async def _with_model(
        self, visit: Visit, outgoing: Outgoing, deadline: float, exchange: Exchange
    ) -> web.StreamResponse:
        visit.queued = now()
        try:
            return await self._once(visit, outgoing.priority, deadline, exchange)
        except (aiohttp.ClientConnectorError, BackendGone) as error:
            # It never had the request: its server died, and systemd has not told yet.
            if not outgoing.replayable:
                raise lost(error) from None
        try:
            return await self._once(visit, outgoing.priority, deadline, exchange)
        except (aiohttp.ClientConnectorError, BackendGone) as error:
            raise lost(error) from None

    async def _once(
        self, visit: Visit, priority: int, deadline: float, exchange: Exchange
    ) -> web.StreamResponse:
        async with self._switcher.request(visit.model, deadline, priority) as backend:
            visit.admitted = now()
            try:
                return await exchange(backend)
            except aiohttp.ClientConnectorError as error:
                # Any other error is ours, such as too many open files: the server is well.
                if error.os_error.errno == errno.ECONNREFUSED:
                    await self._switcher.lost(visit.model, backend)
                raise

    async def _pass_on(
        self, request: web.BaseRequest, visit: Visit, upstream: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        headers = passed(upstream.headers)
        length = upstream.content_length
        tail = Tail()
        if length is not None and length <= _SHORT and request.method != hdrs.METH_HEAD:
            response: web.StreamResponse = await _whole(upstream, headers, tail)
        else:
            response = web.StreamResponse(
                status=upstream.status, reason=upstream.reason, headers=headers
            )
            if length is not None:
                response.content_length = length
            await response.prepare(request)
            await self._stream(request, visit, upstream, response, tail)
        visit.prompt_tokens, visit.completion_tokens = tail.tokens()
        return response

    async def _stream(
        self,
        request: web.BaseRequest,
        visit: Visit,
        upstream: aiohttp.ClientResponse,
        response: web.StreamResponse,
        tail: Tail,
    ) -> None:
        gaps = self._counts.gaps(visit.model)
        before = 0.0
        try:
            async for chunk in upstream.content.iter_any():
                time = now()
                if before:
                    gaps.observe(time - before)
                before = time
                tail.add(chunk)
                await response.write(chunk)
        except (aiohttp.ClientError, OSError) as error:
            # The status is out: a broken stream is the only honest end.
            if request.transport is not None:
                log.warning("%s: the stream broke: %s", request.path, cause(error))
                request.transport.abort()
            return
        await response.write_eof()


async def _whole(
    upstream: aiohttp.ClientResponse, headers: CIMultiDict[str], tail: Tail
) -> web.Response:
    try:
        body = await upstream.read()
    except (aiohttp.ClientError, OSError) as error:
        raise lost(error) from None
    tail.add(body)
    return web.Response(status=upstream.status, reason=upstream.reason, headers=headers, body=body)


async def _begin(backend: Backend, outgoing: Outgoing, deadline: float) -> aiohttp.ClientResponse:
    """The answer's head, in time: a server may accept a request and never answer it."""
    limit = asyncio.timeout_at(deadline)
    try:
        async with limit:
            return await _send(backend, outgoing)
    except TimeoutError:
        if limit.expired():
            raise TimedOut("the model's server did not begin to answer in time") from None
        raise


async def _send(backend: Backend, outgoing: Outgoing) -> aiohttp.ClientResponse:
    async def once() -> aiohttp.ClientResponse:
        return await backend.session.request(
            outgoing.method,
            # As it was sent, without a second opinion on what needs quoting.
            yarl.URL(backend.endpoint + outgoing.target, encoded=True),
            data=outgoing.data,
            headers=outgoing.headers,
            allow_redirects=False,
        )

    try:
        return await once()
    except (aiohttp.ClientConnectorError, BackendGone):
        raise
    except (aiohttp.ClientError, OSError) as error:
        if not was_closed(error) or not outgoing.replayable:
            raise lost(error) from None
        # Most likely the server closed an idle connection just as it was used. Where it died
        # of this very request instead, the connection is refused, and that is the end of it.
        try:
            return await once()
        except (aiohttp.ClientError, OSError):
            raise lost(error) from None


def now() -> float:
    """The running loop's clock, in seconds."""
    return asyncio.get_running_loop().time()
