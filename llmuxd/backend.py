# SPDX-License-Identifier: MIT
"""The connection to one running model's HTTP server; lives from its activation to its leaving."""

import asyncio
import functools
from typing import Any

import aiohttp
from aiohttp import hdrs
from aiohttp.client_proto import ResponseHandler

# Servers close idle connections after 5 s (uvicorn, cpp-httplib); a request sent on a connection
# that the other side just closed would be lost, so ours are dropped well before.
KEEPALIVE = 3.0

# Bytes of an answer that are held for a client that is slow to take it; as many may come on top.
_HELD = 64 * 1024

# What aiohttp would say where the client did not: that a compressed answer is welcome, say.
_NOT_OURS = (hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT)


class BackendGone(ConnectionError):
    """The server left before the request was sent: it can be sent again."""


class _Line(ResponseHandler):
    """One connection. aiohttp keeps what comes while it is idle, and takes it for the answer to the
    next request, whosever that is; a server that says something unasked is not asked again here.
    """

    def set_response_params(self, **params: Any) -> None:
        """A request is about to be sent."""
        self._payload = None
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Some of its answer, or what nobody asked for."""
        answered = self._payload is not None and self._payload.is_eof()
        if answered and data and not self._upgraded and self._payload_parser is None:
            self.close()
            return
        super().data_received(data)


class Backend:
    """`http://127.0.0.1:PORT`, with its own connection pool.

    One pool a run: a connection that was open when the server was checkpointed is dead when it
    comes back, and must not be used again.
    """

    def __init__(self, port: int):
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self._session: aiohttp.ClientSession | None = None
        self._users = 0
        self._retired = False
        self._closed = False

    @property
    def session(self) -> aiohttp.ClientSession:
        """The pool; bytes pass as they are, without limits of count or time."""
        if self._closed:
            raise BackendGone("the model's server has left")
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE)
            # There is no other way to tell it which protocol to use.
            factory = functools.partial(_Line, loop=asyncio.get_running_loop())
            connector._factory = factory  # type: ignore[assignment]
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_HELD,
                skip_auto_headers=_NOT_OURS,
            )
        return self._session

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent or heard any more."""
        return self._closed

    async def __aenter__(self) -> "Backend":
        self._users += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._users -= 1
        if self._retired and not self._users:
            await self.close()

    async def retire(self) -> None:
        """Close once the requests that run on it have ended: no new one is sent."""
        self._retired = True
        if not self._users:
            await self.close()

    async def close(self) -> None:
        """Close every connection, and cut what runs on it."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
