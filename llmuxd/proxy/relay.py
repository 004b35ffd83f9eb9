# SPDX-License-Identifier: MIT
"""Passes a request to a model's server, and its answer back, as it comes."""

from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import aiohttp
from aiohttp import hdrs, web

from ..backend import Backend
from ..errors import LlmuxError, TimedOut
from ..line import Late, Reply
from ..metrics import Visit
from ..pool import BackendGone
from ..switcher import Switcher
from . import websocket
from .answer import Answers
from .loss import lost, was_closed
from .moments import now
from .outgoing import Outgoing
from .waiting import Waiting

# What is open to the server until the answer has passed: a reply, or a WebSocket.
Opened = TypeVar("Opened", bound=AbstractAsyncContextManager[Any])


class _Turn(Generic[Opened]):
    """A request's turn at its model: from its wait until the answer has passed.

    No coroutine and no closure, of which each would be held as long as the answer lasts.
    """

    __slots__ = ("_opened", "_outgoing", "_place", "_switcher", "_visit")

    def __init__(self, switcher: Switcher, visit: Visit, outgoing: Outgoing):
        self._switcher = switcher
        self._visit = visit
        self._outgoing = outgoing

    async def __aenter__(self) -> Opened:
        deadline = self._switcher.deadline(self._visit.model)
        self._visit.queued = now()
        try:
            return await self._once(deadline)
        except BackendGone as error:
            # It never had the request: its server died, and systemd has not told yet.
            if not self._outgoing.replayable:
                raise lost(error) from None
        try:
            return await self._once(deadline)
        except BackendGone as error:
            raise lost(error) from None

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._opened.__aexit__(*exc)
        finally:
            await self._place.__aexit__(*exc)

    async def _once(self, deadline: float) -> Opened:
        place = self._switcher.request(self._visit.model, deadline, self._outgoing.priority)
        backend = await place.__aenter__()
        try:
            self._visit.admitted = now()
            self._opened = await self._open(backend, deadline)
        except BaseException as error:
            try:
                if isinstance(error, BackendGone) and error.refused:
                    await self._switcher.lost(self._visit.model, backend)
            finally:
                await place.__aexit__(None, None, None)
            raise
        self._place = place
        self._outgoing.forget()
        return self._opened

    async def _open(self, backend: Backend, deadline: float) -> Opened:
        raise NotImplementedError


class _Question(_Turn[Reply]):
    """One that is asked and answered."""

    __slots__ = ()

    async def _open(self, backend: Backend, deadline: float) -> Reply:
        """The answer's head, in time: a server may accept a request and never answer it."""
        try:
            return await _send(backend, self._outgoing, deadline)
        except Late:
            raise TimedOut("the model's server did not begin to answer in time") from None


class _Tunnel(_Turn[aiohttp.ClientWebSocketResponse]):
    """A WebSocket. `limit` is a message's, in bytes."""

    __slots__ = ("_limit", "_request")

    def __init__(
        self, switcher: Switcher, visit: Visit, outgoing: Outgoing, request: web.BaseRequest,
        limit: int,
    ):  # fmt: skip
        super().__init__(switcher, visit, outgoing)
        self._request = request
        self._limit = limit

    async def _open(self, backend: Backend, deadline: float) -> aiohttp.ClientWebSocketResponse:
        outgoing = self._outgoing
        return await websocket.connect(
            self._request, backend, outgoing.target, outgoing.headers, self._limit
        )


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
        question = _Question(self._switcher, visit, outgoing)
        if waiting is None:
            async with question as reply:
                visit.first_byte = now()
                return await self._answers.pass_on(request, visit, reply, None)
        waiting.start()
        try:
            async with question as reply:
                visit.first_byte = now()
                begun = await waiting.stop()
                return await self._answers.pass_on(request, visit, reply, begun)
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
        async with _Tunnel(self._switcher, visit, outgoing, request, limit) as upstream:
            return await websocket.pass_on(request, upstream, limit)


async def _send(backend: Backend, outgoing: Outgoing, deadline: float) -> Reply:
    try:
        return await _ask(backend, outgoing, deadline, fresh=False)
    except BackendGone:
        raise
    except (aiohttp.ClientError, OSError) as error:
        if not was_closed(error) or not outgoing.replayable:
            raise lost(error) from None
        # Most likely the server closed an idle connection just as it was used. Where it died
        # of this very request instead, the connection is refused, and that is the end of it.
        try:
            return await _ask(backend, outgoing, deadline, fresh=True)
        except (aiohttp.ClientError, OSError):
            raise lost(error) from None


async def _ask(backend: Backend, outgoing: Outgoing, deadline: float, *, fresh: bool) -> Reply:
    pool = backend.pool
    return await pool.ask(
        outgoing.head(pool.host),
        outgoing.pieces,
        chunked=outgoing.chunked,
        no_body=outgoing.method == hdrs.METH_HEAD,
        fresh=fresh,
        deadline=deadline,
    )
