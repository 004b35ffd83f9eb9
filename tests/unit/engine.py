# SPDX-License-Identifier: MIT
"""A model's server, as the proxy meets it: real HTTP on loopback, with faults on demand."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web
from multidict import CIMultiDict

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Seen:
    """One request, as it came in."""

    method: str
    path: str
    headers: CIMultiDict[str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


@dataclass
class Engine:
    """Answers each request by `answer`, and keeps what it saw."""

    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # a client left in mid-answer
    answer: Answer | None = None
    runner: web.AppRunner | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append(Seen(request.method, request.raw_path, CIMultiDict(request.headers), body))
        try:
            if self.answer is not None:
                return await self.answer(request)
            return web.json_response({"id": "x", "object": "chat.completion"})
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise

    async def die(self) -> None:
        """Close the socket and every connection, at once."""
        assert self.runner is not None
        await self.runner.cleanup()


@contextlib.asynccontextmanager
async def an_engine() -> AsyncIterator[Engine]:
    """An engine that listens on a free port."""
    engine = Engine()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", engine.handle)
    engine.runner = web.AppRunner(
        app, handler_cancellation=True, shutdown_timeout=0.05, auto_decompress=False
    )
    await engine.runner.setup()
    site = web.TCPSite(engine.runner, "127.0.0.1", 0)
    await site.start()
    engine.port = engine.runner.addresses[0][1]
    try:
        yield engine
    finally:
        await engine.runner.cleanup()


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """The head and body of one request with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head + await reader.readexactly(length)


@contextlib.asynccontextmanager
async def a_raw_server(serve: Serve) -> AsyncIterator[int]:
    """A TCP server whose every byte is the test's own; yields its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what has no event of its own."""
    for _ in range(1_000_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to pass")
