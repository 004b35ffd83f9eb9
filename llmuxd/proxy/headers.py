# SPDX-License-Identifier: MIT
"""Which headers pass."""

from collections.abc import Iterable

from multidict import CIMultiDict, CIMultiDictProxy

# RFC 9110, 7.6.1: these belong to one connection and are not passed on. Content-Length is
# made anew for the body that is in hand.
_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
        "te", "trailer", "transfer-encoding", "upgrade", "content-length", "host", "expect",
    }
)  # fmt: skip

# Made for each connection anew by the one who opens it (RFC 6455).
HANDSHAKE = frozenset(
    {
        "sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions",
        "sec-websocket-protocol", "sec-websocket-accept",
    }
)  # fmt: skip


def passed(headers: CIMultiDictProxy[str], without: Iterable[str] = ()) -> CIMultiDict[str]:
    """Those that are not of this connection alone; `without`: names in lower case."""
    dropped = _HOP_BY_HOP.union(without) if without else _HOP_BY_HOP
    if "Connection" in headers:
        lists = headers.getall("Connection")
        dropped = dropped.union(
            token.strip().lower() for line in lists for token in line.split(",")
        )
    return CIMultiDict(
        [(key, value) for key, value in headers.items() if key.lower() not in dropped]
    )
