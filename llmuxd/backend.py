# SPDX-License-Identifier: MIT
"""The way to one running model's HTTP server; lives from its activation to its leaving."""

from typing import Any

import aiohttp
from aiohttp import hdrs

from .errors import HandshakeRefused
from .pool import BackendGone, Pool

# What aiohttp would say where the client did not: that a compressed answer is welcome, say.
_NOT_OURS = (hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT)


def _staying() -> aiohttp.TraceConfig:
    """Follows no redirect of a handshake, which there is no other way to say."""

    async def refuse(_session: object, _context: object, seen: Any) -> None:
        seen.response.close()
        raise HandshakeRefused("the model's server sends its WebSockets elsewhere")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(refuse)
    return trace


class Backend:
    """`http://127.0.0.1:PORT`, with its own connections.

    They are of one run: one that was open when the server was checkpointed is dead when it comes
    back, and must not be used again.
    """

    def __init__(self, port: int):
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self._pool = Pool(port)
        self._session: aiohttp.ClientSession | None = None
        self._users = 0
        self._retired = False
        self._closed = False

    @property
    def pool(self) -> Pool:
        """The connections for requests; bytes pass as they are, without limits of count or time."""
        self._refuse_if_closed()
        return self._pool

    @property
    def session(self) -> aiohttp.ClientSession:
        """For WebSockets, each on a connection of its own."""
        self._refuse_if_closed()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=_NOT_OURS,
                trace_configs=[_staying()],
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
        self._pool.close()
        if self._session is not None:
            await self._session.close()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise BackendGone("the model's server has left")
