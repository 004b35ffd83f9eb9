# SPDX-License-Identifier: MIT
"""Passes a request to a model's server, and its answer back, as it comes."""

import asyncio
import errno
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import yarl
from aiohttp import web
from multidict import CIMultiDict

from ..backend import Backend, BackendGone
from ..errors import LlmuxError, TimedOut
from ..metrics import Visit
from ..switcher import Switcher
from . import websocket
from .answer import Answers
from .form import Form
from .loss import lost, was_closed
from .moments import now
from .waiting import Waiting

# From here on aiohttp wants a file, which it writes in pieces.
_LARGE = 1 << 20


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

    def __init__(self, switcher: Switcher, answers: Answers):
        self._switcher = switcher
        self._answers = answers

    async def serve(
        self,
        request: web.BaseRequest,
        visit: Visit,
        outgoing: Outgoing,
        waiting: Waiting | None,
    ) -> web.StreamResponse:
        """Have the visit's model answer `request`; `waiting` tells the client what happens."""
        deadline = self._switcher.deadline(visit.model)

        async def exchange(backend: Backend) -> web.StreamResponse:
            async with await _begin(backend, outgoing, deadline) as upstream:
                visit.first_byte = now()
                begun = await waiting.stop() if waiting else None
                return await self._answers.pass_on(request, visit, upstream, begun)

        if waiting is None:
            return await self._with_model(visit, outgoing, deadline, exchange)
        waiting.start()
        try:
            return await self._with_model(visit, outgoing, deadline, exchange)
        except LlmuxError as error:
            told = await waiting.fail(error)
            if told is None:
                raise
            return told
        finally:
            await waiting.stop()

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
