# SPDX-License-Identifier: MIT
"""A proxy before a switcher before an engine, and clients for it."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import aiohttp

from llmuxd.gpus import Gpus
from llmuxd.proxy import Proxy

from .engine import Engine, an_engine
from .fake_units import a_model
from .stage import Stage, on_stage

A, B = a_model("org/a", aliases=("first",)), a_model("b")
CHAT = "/v1/chat/completions"
ASK: dict[str, object] = {"model": "org/a", "messages": []}


@dataclass
class House:
    """A proxy before a switcher before an engine, and a client."""

    stage: Stage
    proxy: Proxy
    engine: Engine
    client: aiohttp.ClientSession
    url: str
    port: int

    async def post(self, body: object = ASK, path: str = CHAT) -> tuple[int, object]:
        """One request from its begin to its end."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.post(self.url + path, data=data) as response:
            return response.status, json.loads(await response.read())

    async def get(self, path: str) -> tuple[int, object]:
        async with self.client.get(self.url + path) as response:
            return response.status, await response.json()

    async def raw(self, head: str, body: bytes = b"") -> bytes:
        """All that comes back for these very bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    @property
    def in_flight(self) -> int:
        return self.stage.switcher.model("org/a").in_flight

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self.stage.until(lambda: self.in_flight == 0)

    def reconfigure(self, **more: object) -> None:
        """As if llmux.yaml said this too, from now on."""
        config = replace(self.stage.switcher.config, **more)  # type: ignore[arg-type]
        self.stage.switcher.reload(config)


@contextlib.asynccontextmanager
async def a_house() -> AsyncIterator[House]:
    """All of it, running."""
    async with an_engine() as engine, on_stage(A, B) as stage:
        stage.units.ports = {"org/a": engine.port, "b": engine.port}
        proxy = Proxy(stage.switcher, Gpus(), None)
        sock = socket.create_server(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        await proxy.start([sock])
        async with aiohttp.ClientSession(auto_decompress=False) as client:
            yield House(stage, proxy, engine, client, f"http://127.0.0.1:{port}", port)
        await proxy.close()


def told(answer: tuple[int, object]) -> tuple[int, str, str, str | None]:
    """Status, message, type and code of an error in OpenAI's shape."""
    status, body = answer
    assert isinstance(body, dict) and body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and "Traceback" not in error["message"]
    return status, error["message"], error["type"], error["code"]
