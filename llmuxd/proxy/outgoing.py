# SPDX-License-Identifier: MIT
"""What a model's server is to get."""

from dataclasses import dataclass

from ..line import Body
from .form import Form
from .headers import Headers, as_bytes, head

# Elsewhere a server waits for a body unless it is told that there is none (RFC 9110, 8.6).
_BODILESS = ("GET", "HEAD", "OPTIONS", "TRACE")


@dataclass(slots=True)
class Outgoing:
    """One request. `target` is the path and query, as they are sent.

    `stream`: an event stream is wanted; `tunnel`: a WebSocket.
    """

    method: str
    target: str
    headers: Headers
    body: bytes | Form = b""
    priority: int = 0
    stream: bool = False
    tunnel: bool = False

    def head(self, host: bytes) -> bytes:
        """All that comes before the body."""
        first = as_bytes(f"{self.method} {self.target} HTTP/1.1")
        return head(first, [(b"Host", host), *self.headers, *self._framing()])

    @property
    def pieces(self) -> Body:
        """The body, as it is sent."""
        return self.body.chunks() if isinstance(self.body, Form) else self.body

    @property
    def chunked(self) -> bool:
        """Whether nobody knows how long the body will be."""
        return isinstance(self.body, Form) and self.body.length is None

    @property
    def replayable(self) -> bool:
        """Whether it can be sent again."""
        return not isinstance(self.body, Form) or self.body.replayable

    def forget(self) -> None:
        """It has been sent: who waits for the answer's end need not hold it meanwhile."""
        self.headers = ()
        self.body = b""

    def _framing(self) -> Headers:
        length = self.body.length if isinstance(self.body, Form) else len(self.body)
        if length is None:
            return [(b"Transfer-Encoding", b"chunked")]
        if length or self.method not in _BODILESS:
            return [(b"Content-Length", b"%d" % length)]
        return []
