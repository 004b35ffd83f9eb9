# SPDX-License-Identifier: MIT
"""The connection to one running model's HTTP server; lives from its activation to its leaving."""

import aiohttp
from aiohttp import hdrs

# Servers close idle connections after 5 s (uvicorn, cpp-httplib); a request sent on a connection
# that the other side just closed would be lost, so ours are dropped well before.
KEEPALIVE = 3.0

# What aiohttp would say where the client did not: that a compressed answer is welcome, say.
_NOT_OURS = (hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT)


class BackendGone(ConnectionError):
    """The server left before the request was sent: it can be sent again."""


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
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
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
