# SPDX-License-Identifier: MIT
"""The clients of the proxy's benchmark: wrk, a steady one, and one that reads many streams."""

import asyncio
import json
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from .contenders import MODEL, Contender

PATH = "/v1/chat/completions"

_WRK = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[{body}]]
function done(summary, latency, requests)
    local failed = summary.errors.status + summary.errors.read + summary.errors.connect
    io.write(string.format("result %d %d %d %d %d\\n", summary.requests, summary.duration,
        latency:percentile(50), latency:percentile(99), failed))
end
"""


@dataclass
class Load:
    """What one run of wrk saw; times are in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    failed: int
    processor: float  # of the contender, for each request

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def body(padding: int = 0) -> str:
    """A request's, with so many bytes more."""
    content = "Hello, how are you? " + "x" * padding
    return json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 16}
    )


def script(scratch: Path, name: str, text: str) -> Path:
    """The request for wrk."""
    path = scratch / f"{name}.lua"
    path.write_text(_WRK.format(body=text), encoding="utf-8")
    return path


def wrk(contender: Contender, connections: int, seconds: int, request: Path) -> Load:
    """As many requests as go, over so many connections."""
    before = contender.seconds
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout=10s", "-s"]
    done = subprocess.run(
        [*argv, str(request), f"http://127.0.0.1:{contender.port}{PATH}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("result ")]
    requests, took, p50, p99, failed = (int(number) for number in line.split()[1:])
    used = contender.seconds - before
    return Load(
        requests, took / 1e6, p50 / 1e6, p99 / 1e6, failed, used / requests if requests else 0.0
    )


class _Client(asyncio.Protocol):
    """One connection: a request, and the moments at which bytes of its answer came."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        self.tail = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.moments.append(asyncio.get_running_loop().time())
        self.tail = (self.tail + data)[-512:]
        if not self.ended.done() and self._is_whole():
            self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(exc or ConnectionError("the connection was closed"))
            self.ended.exception()

    def ask(self, text: str) -> None:
        self.moments.clear()
        self.tail = b""
        self.ended = asyncio.get_running_loop().create_future()
        raw = text.encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        self.transport.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)

    def _is_whole(self) -> bool:
        # Of the two answers that there are, one ends so and the other in a last chunk.
        return self.tail.endswith((b"}}", b"}}}", b"0\r\n\r\n"))


async def steady(port: int, connections: int, rate: float, seconds: float) -> list[float]:
    """The latencies of `rate` requests a second, evenly over the connections."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []

    async def ask_on(number: int) -> None:
        _, client = await loop.create_connection(_Client, "127.0.0.1", port)
        pace = connections / rate
        due = begin + number / rate
        while due < begin + seconds:
            await asyncio.sleep(due - loop.time())
            asked = loop.time()
            client.ask(text)
            await client.ended
            latencies.append(client.moments[-1] - asked)
            due += pace
        client.transport.close()

    text = body()
    begin = loop.time() + 0.1
    await asyncio.gather(*(ask_on(number) for number in range(connections)))
    return latencies


@dataclass
class Streams:
    """Open streams and what came of them."""

    gaps: list[float] = field(default_factory=list)
    chunks: int = 0

    @property
    def p99(self) -> float:
        """Of the gaps, in seconds."""
        return statistics.quantiles(self.gaps, n=100)[-1]


async def stream(port: int, count: int, chunks: int, pace_ms: int) -> Streams:
    """So many event streams at once, each to its end."""
    loop = asyncio.get_running_loop()
    seen = Streams()
    request = json.dumps(
        {"model": MODEL, "messages": [], "stream": True, "chunks": chunks, "pace_ms": pace_ms}
    )

    async def read_one(number: int) -> None:
        # Spread over one pace: engines do not answer all in one moment.
        await asyncio.sleep(number / count * pace_ms / 1000)
        _, client = await loop.create_connection(_Client, "127.0.0.1", port)
        client.ask(request)
        await client.ended
        # The head may come before the first chunk, and the end after the last.
        moments = client.moments[1:-1]
        seen.gaps += [after - before for before, after in zip(moments, moments[1:], strict=False)]
        seen.chunks += len(moments)
        client.transport.close()

    await asyncio.gather(*(read_one(number) for number in range(count)))
    return seen
