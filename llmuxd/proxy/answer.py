# SPDX-License-Identifier: MIT
"""Passes an engine's answer to the client, as it comes."""

import asyncio
import json
import logging

import aiohttp
from aiohttp import hdrs, web

from ..line import Reply
from ..metrics import Counts, Visit
from ..switcher import Switcher
from . import cors
from .arrivals import Arrivals
from .headers import passed
from .loss import cause, lost
from .moments import now
from .passing import Passing
from .usage import Tail

log = logging.getLogger(__name__)

# An answer of so many bytes is passed on whole: its head and body leave in one packet, and a
# server that dies in the middle of it is a clean error.
_SHORT = 64 * 1024
# A client that takes nothing for so long is let go, in seconds: its request keeps the model from
# leaving for those that others wait for. nginx's send_timeout is 60.
STALLED = 300.0
# Less goes into the kernel's buffer, or waits in ours for the next piece.
_QUICK = 16 * 1024


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
        upstream: Reply,
        begun: web.StreamResponse | None,
    ) -> web.StreamResponse:
        """`begun`: an event stream that the client has the head of already."""
        tail = Tail()
        response = self._passing(request, visit, upstream) if begun is None else begun
        if _is_whole(response, upstream):
            await _pass_whole(response, upstream, tail)
            visit.prompt_tokens, visit.completion_tokens = tail.tokens
            return response
        if isinstance(response, Passing):
            await response.begin()
            upstream.forget()
        gaps = self._counts.gaps(visit.model)
        before = 0.0
        try:
            while chunk := await upstream.body.readany():
                time = now()
                if before:
                    gaps.observe(time - before)
                before = time
                tail.add(chunk)
                await _write(request, response, chunk)
            await response.write_eof()
        except (aiohttp.ClientError, OSError) as error:
            # The status is out: a broken stream is the only honest end.
            if request.transport is not None:
                log.warning("%s: the stream broke: %s", request.path, cause(error))
                request.transport.abort()
        visit.prompt_tokens, visit.completion_tokens = tail.tokens
        return response

    def _passing(self, request: web.BaseRequest, visit: Visit, upstream: Reply) -> Passing:
        config = self._switcher.config
        headers = passed(upstream.raw_headers)
        if config.response_headers:
            headers += self._arrivals.told(visit)
        if config.cors_origins:
            granted = cors.granted(request, config)
            headers += [(name.encode(), value.encode()) for name, value in granted.items()]
        try:
            return Passing(request, upstream.status, upstream.reason, headers, upstream.length)
        except ValueError as error:
            raise lost(error) from None


def _is_whole(response: web.StreamResponse, upstream: Reply) -> bool:
    """Whether it is passed on at once: it is short, or no event stream though one has begun."""
    if isinstance(response, Passing):
        return response.fits(_SHORT)
    kind = upstream.headers.get(hdrs.CONTENT_TYPE, "")
    return kind.partition(";")[0].strip().lower() != "text/event-stream"


async def _write(request: web.BaseRequest, response: web.StreamResponse, chunk: bytes) -> None:
    transport = request.transport
    if transport is not None and (len(chunk) > _QUICK or transport.get_write_buffer_size()):
        # It may be long: the client takes less than it is sent.
        try:
            async with asyncio.timeout(STALLED):
                await response.write(chunk)
        except TimeoutError:
            raise ConnectionError(f"its client took nothing for {STALLED:g} s") from None
    else:
        await response.write(chunk)


async def _pass_whole(response: web.StreamResponse, upstream: Reply, tail: Tail) -> None:
    try:
        body = await upstream.whole()
    except (aiohttp.ClientError, OSError) as error:
        raise lost(error) from None
    tail.add(body)
    if isinstance(response, Passing):
        response.whole = body
        return
    # An error, as a rule: the engine's own words, in the one form that is left.
    await response.write(b"data: " + _one_line(body) + b"\n\n")
    await response.write_eof()


def _one_line(body: bytes) -> bytes:
    """An event's data is one line; JSON can always be written so."""
    try:
        return json.dumps(json.loads(body)).encode()
    except ValueError:
        return json.dumps({"error": {"message": body.decode(errors="replace")}}).encode()
