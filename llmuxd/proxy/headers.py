# SPDX-License-Identifier: MIT
"""Heads of requests and answers, as bytes, and which of their headers pass."""

from collections.abc import Iterable, Sequence

# Name and value, as they were sent.
Headers = Sequence[tuple[bytes, bytes]]

# RFC 9110, 7.6.1: most of these belong to one connection and are not passed on. Content-Length is
# made anew for the body that is in hand.
_HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
        b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"content-length", b"host", b"expect",
        # Which pages may read answers is told in llmux.yaml alone: see cors.
        b"access-control-allow-origin", b"access-control-allow-credentials",
        b"access-control-expose-headers",
    }
)  # fmt: skip

# Made for each connection anew by the one who opens it (RFC 6455).
HANDSHAKE = (
    b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions",
    b"sec-websocket-protocol", b"sec-websocket-accept",
)  # fmt: skip


def passed(
    headers: Iterable[tuple[bytes, bytes]], without: Iterable[bytes] = ()
) -> list[tuple[bytes, bytes]]:
    """Those that are not of this connection alone; `without`: names in lower case."""
    dropped = _HOP_BY_HOP.union(without) if without else _HOP_BY_HOP
    kept, listed = [], b""
    for header in headers:
        name = header[0].lower()
        if name not in dropped:
            kept.append(header)
        elif name == b"connection":
            listed += header[1] + b","
    if not listed:
        return kept
    named = {token.strip() for token in listed.lower().split(b",")} - dropped - {b""}
    return [header for header in kept if header[0].lower() not in named] if named else kept


def head(first: bytes, headers: Headers) -> bytes:
    """A whole head. ValueError where what is one line in it would be two for the next reader."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    text = b"%b\r\n%b\r\n" % (first, b"".join(lines))
    if not text.count(b"\n") == text.count(b"\r") == len(lines) + 2 or b"\0" in text:
        raise ValueError("a header has a control character in it")
    return text


def as_bytes(text: str) -> bytes:
    """What aiohttp made into text, as it was sent."""
    return text.encode("utf-8", "surrogateescape")
