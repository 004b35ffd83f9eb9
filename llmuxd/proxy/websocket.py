# SPDX-License-Identifier: MIT
"""A WebSocket between a client and a model's server: two connections, and the messages passed."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterable

import aiohttp
import yarl
from aiohttp import hdrs, web
from multidict import CIMultiDict

from ..backend import Backend
from ..errors import BadRequest, HandshakeRefused
from ..pool import BackendGone
from .headers import Headers
from .loss import lost

# OpenAI's realtime clients in browsers send their key as one of the offered protocols.
KEY_PROTOCOL = "openai-insecure-api-key."
# A client that takes nothing for so long is let go, in seconds, as that of any other answer.
STALLED = 300.0
# For the last words with each side, in seconds.
FAREWELL = 5.0

# It warns of protocols that the server does not speak, and would tell the key among them.
logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)


def wanted(request: web.BaseRequest) -> bool:
    """Whether the client asks for a WebSocket; BadRequest where it does not do it as it is done."""
    if not _upgrades(request):
        return False
    if not web.WebSocketResponse().can_prepare(request):
        raise BadRequest("the request for a WebSocket is none of version 13 (RFC 6455, 4.1)")
    return True


def offered(request: web.BaseRequest) -> list[str]:
    """The protocols that the client speaks, in its order; none where it wants no WebSocket."""
    if not _upgrades(request):
        return []
    lines = request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    return [item.strip() for line in lines for item in line.split(",") if item.strip()]


async def connect(
    request: web.BaseRequest,
    backend: Backend,
    target: str,
    headers: Headers,
    limit: int,
) -> aiohttp.ClientWebSocketResponse:
    """The model's side of it; `limit` is a message's, in bytes."""
    protocols = [name for name in offered(request) if not name.startswith(KEY_PROTOCOL)]
    try:
        return await backend.session.ws_connect(
            # As it was sent, without a second opinion on what needs quoting.
            yarl.URL(backend.endpoint + target, encoded=True),
            protocols=protocols,
            headers=_as_text(headers),
            autoping=False,
            max_msg_size=limit,
        )
    except aiohttp.WSServerHandshakeError as error:
        raise HandshakeRefused(
            f"the model's server refuses a WebSocket on {target.partition('?')[0]}:"
            f" status {error.status}"
        ) from None
    except BackendGone:
        raise
    except aiohttp.ClientConnectorError as error:
        raise BackendGone(f"it cannot be reached: {error.os_error}") from error.os_error
    except (aiohttp.ClientError, OSError) as error:
        raise lost(error) from None


async def pass_on(
    request: web.BaseRequest, upstream: aiohttp.ClientWebSocketResponse, limit: int
) -> web.StreamResponse:
    """Pass messages both ways until one side ends."""
    chosen = [upstream.protocol] if upstream.protocol else []
    client = web.WebSocketResponse(protocols=chosen, autoping=False, max_msg_size=limit)
    await client.prepare(request)
    await _both_ways(client, upstream)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FAREWELL):
            await upstream.close(code=_code(client.close_code))
    try:
        async with asyncio.timeout(FAREWELL):
            await client.close(code=_code(upstream.close_code))
    except TimeoutError:
        # It takes nothing any more.
        if request.transport is not None:
            request.transport.abort()
    return client


async def _both_ways(
    client: web.WebSocketResponse, upstream: aiohttp.ClientWebSocketResponse
) -> None:
    ways = {
        asyncio.create_task(_pass(client, upstream)),
        asyncio.create_task(_pass(upstream, client)),
    }
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _pass(
    source: AsyncIterable[aiohttp.WSMessage],
    sink: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
) -> None:
    async for message in source:
        # The model's server may be busy with what it has.
        patience = STALLED if isinstance(sink, web.WebSocketResponse) else None
        async with asyncio.timeout(patience):
            match message.type:
                case aiohttp.WSMsgType.TEXT:
                    await sink.send_str(message.data)
                case aiohttp.WSMsgType.BINARY:
                    await sink.send_bytes(message.data)
                case aiohttp.WSMsgType.PING:
                    await sink.ping(message.data)
                case aiohttp.WSMsgType.PONG:
                    await sink.pong(message.data)
                case _:
                    return


def _upgrades(request: web.BaseRequest) -> bool:
    upgrade = request.headers.get(hdrs.UPGRADE, "")
    return request.method == hdrs.METH_GET and upgrade.strip().lower() == "websocket"


def _as_text(headers: Headers) -> CIMultiDict[str]:
    return CIMultiDict(
        (name.decode(errors="surrogateescape"), value.decode(errors="surrogateescape"))
        for name, value in headers
    )


def _code(given: int | None) -> int:
    # 1005 and 1006 say that none was given, and must not be sent (RFC 6455, 7.4.1).
    return aiohttp.WSCloseCode.GOING_AWAY if given in (None, 1005, 1006, 1015) else given
