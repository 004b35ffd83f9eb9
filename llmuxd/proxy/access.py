# SPDX-License-Identifier: MIT
"""Who may ask: API keys, and what each may use."""

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import Collection, Iterator

from aiohttp import hdrs, web

from ..errors import KeyForbids, RateLimited, Unauthorized
from ..keys import Key
from . import websocket

# Where clients put their key: OpenAI's, Anthropic's, Azure's.
_HEADERS = ("x-api-key", "api-key")
# Not for the engines, nor for their logs.
SECRET_HEADERS = (b"authorization", *(name.encode() for name in _HEADERS))
_MINUTE = 60.0


class Caller:
    """Who asks, with what is left to them. This one may do all.

    `known`: by a key, which no page in a browser has that was not given it.
    """

    known = False
    priority = 0
    secret_headers: tuple[bytes, ...] = ()

    def may_use(self, model: str) -> bool:
        """Whether the model is one of theirs."""
        return True

    def check(self, model: str) -> None:
        """KeyForbids where it is not."""

    def check_metrics(self) -> None:
        """KeyForbids where they may not see what all models do."""

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """One request of theirs; RateLimited where it is one too many."""
        return _FREE


_FREE = contextlib.nullcontext()


class _KeyHolder(Caller):
    """A caller with a key. The count of what they used outlives a reload."""

    known = True
    secret_headers = SECRET_HEADERS

    def __init__(self, key: Key):
        self._in_flight = 0
        self._left = float(key.requests_per_minute)
        self._refilled_at = 0.0
        self.take(key)

    def take(self, key: Key) -> None:
        """The settings are these from now on."""
        self.key = key
        self.priority = key.priority
        self._left = min(self._left, float(key.requests_per_minute))

    def may_use(self, model: str) -> bool:
        return self.key.models is None or model in self.key.models

    def check(self, model: str) -> None:
        if not self.may_use(model):
            raise KeyForbids(f"the key {self.key.name!r} may not use {model!r}")

    def check_metrics(self) -> None:
        if not self.key.metrics:
            raise KeyForbids(
                f"the key {self.key.name!r} may not read what all models do",
                "'metrics: true' in the file of keys allows it",
            )

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        if self.key.concurrency and self._in_flight >= self.key.concurrency:
            raise RateLimited(
                f"the key {self.key.name!r} has {self._in_flight} requests in flight already",
                retry_after=1.0,
            )
        if self.key.requests_per_minute:
            self._spend()
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _spend(self) -> None:
        """A bucket that holds a minute's requests, and fills up evenly."""
        now = asyncio.get_running_loop().time()
        per_minute = self.key.requests_per_minute
        refill = (now - self._refilled_at) * per_minute / _MINUTE
        self._left = min(self._left + refill, float(per_minute))
        self._refilled_at = now
        if self._left < 1:
            raise RateLimited(
                f"the key {self.key.name!r} has had its {per_minute} requests a minute",
                retry_after=(1 - self._left) * _MINUTE / per_minute,
            )
        self._left -= 1


_ANYBODY = Caller()


class Access:
    """Finds the caller of a request. `keys`: None lets everybody do all."""

    def __init__(self, keys: Collection[Key] | None):
        self._holders: dict[bytes, _KeyHolder] | None = None
        self.take(keys)

    def take(self, keys: Collection[Key] | None) -> None:
        """These keys hold from now on; requests in flight go on."""
        if keys is None:
            self._holders = None
            return
        known = {holder.key.name: holder for holder in (self._holders or {}).values()}
        self._holders = {}
        for key in keys:
            holder = known.get(key.name)
            if holder is None:
                holder = _KeyHolder(key)
            else:
                holder.take(key)
            self._holders[key.sha256] = holder

    def caller(self, request: web.BaseRequest) -> Caller:
        """Who asks; Unauthorized where that is nobody whom we know."""
        if self._holders is None:
            return _ANYBODY
        secret = _secret(request)
        if not secret:
            raise Unauthorized("the request has no API key")
        digest = hashlib.sha256(secret.encode(errors="surrogateescape")).digest()
        # The time that the look-up takes tells of the digests, from which no key follows; the
        # comparison of what was found takes the same time wherever they differ.
        holder = self._holders.get(digest)
        if holder is None or not hmac.compare_digest(holder.key.sha256, digest):
            raise Unauthorized("the request's API key is not known")
        return holder


def _secret(request: web.BaseRequest) -> str:
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    for name in _HEADERS:
        if name in request.headers:
            return request.headers[name].strip()
    for protocol in websocket.offered(request):
        if protocol.startswith(websocket.KEY_PROTOCOL):
            return protocol[len(websocket.KEY_PROTOCOL) :]
    return ""
