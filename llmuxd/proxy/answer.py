# SPDX-License-Identifier: MIT
"""Passes an engine's answer to the client, as it comes."""

import json
import logging

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict

from ..metrics import Counts, Visit
from ..switcher import Switcher
from .arrivals import Arrivals
from .headers import passed
from .loss import cause, lost
from .moments import now
from .usage import Tail

log = logging.getLogger(__name__)

# An answer of so many bytes is passed on whole: its head and body leave in one packet, and a
# server that dies in the middle of it is a clean error.
_SHORT = 64 * 1024


class Answers:
    """What all answers have in common: who counts them, and what they tell of llmuxd."""

    def __init__(self, switcher: Switcher, counts: Counts, arrivals: Arrivals):
        self._switcher = switcher
        self._counts = counts
        self._arrivals = arrivals

    async def pass_on(
        self,
        request: web.BaseRequest,
        visit: Visit,
        upstream: aiohttp.ClientResponse,
        begun: web.StreamResponse | None,
    ) -> web.StreamResponse:
        """`begun`: an event stream that the client has the head of already."""
        tail = Tail()
        if begun is not None:
            response = begun
            await self._into(request, visit, upstream, begun, tail)
        else:
            response = await self._anew(request, visit, upstream, tail)
        visit.prompt_tokens, visit.completion_tokens = tail.tokens()
        return response

    async def _anew(
        self,
        request: web.BaseRequest,
        visit: Visit,
        upstream: aiohttp.ClientResponse,
        tail: Tail,
    ) -> web.StreamResponse:
        headers = passed(upstream.headers)
        if self._switcher.config.response_headers:
            self._arrivals.tell(visit, headers)
        length = upstream.content_length
        if length is not None and length <= _SHORT and request.method != hdrs.METH_HEAD:
            return await _whole(upstream, headers, tail)
        response = web.StreamResponse(
            status=upstream.status, reason=upstream.reason, headers=headers
        )
        if length is not None:
            response.content_length = length
        await response.prepare(request)
        await self._stream(request, visit, upstream, response, tail)
        return response

    async def _into(
        self,
        request: web.BaseRequest,
        visit: Visit,
        upstream: aiohttp.ClientResponse,
        begun: web.StreamResponse,
        tail: Tail,
    ) -> None:
        if upstream.content_type == "text/event-stream":
            await self._stream(request, visit, upstream, begun, tail)
            return
        # An error, as a rule: the engine's own words, in the one form that is left.
        body = (await _whole(upstream, CIMultiDict(), tail)).body
        assert isinstance(body, bytes)
        await begun.write(b"data: " + _one_line(body) + b"\n\n")
        await begun.write_eof()

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


def _one_line(body: bytes) -> bytes:
    """An event's data is one line; JSON can always be written so."""
    try:
        return json.dumps(json.loads(body)).encode()
    except ValueError:
        return json.dumps({"error": {"message": body.decode(errors="replace")}}).encode()
