# SPDX-License-Identifier: MIT
"""What a streaming client hears while its model comes back: comments, which clients skip.

They keep proxies in between from giving up on a silent connection, and tell people what happens.
The price is that status 200 is out before the engine has said anything: an error is then an event.
"""

import asyncio
import contextlib

from aiohttp import hdrs, web

from ..errors import LlmuxError
from ..switcher import Switcher
from . import cors, shapes
from .arrivals import MODEL_HEADER, in_latin
from .routes import Api

# By which a client opts in where the configuration does not: `X-LLMux-Waiting: comments`.
HEADER = "X-LLMux-Waiting"
WANTED = "comments"

# Seconds. A model that serves already answers sooner than the first, and its client sees its own
# status; proxies give up after 30 or 60 s of silence.
FIRST = 1.0
INTERVAL = 5.0


class Waiting:
    """One request's wait. Between `start` and `stop` its client hears comments."""

    def __init__(self, request: web.BaseRequest, switcher: Switcher, model: str, api: Api):
        self._request = request
        self._switcher = switcher
        self._model = model
        self._api = api
        self._response: web.StreamResponse | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """The wait begins."""
        self._task = asyncio.create_task(self._tell(), name=f"comments for {self._model}")

    async def stop(self) -> web.StreamResponse | None:
        """It is over; the response, where one has begun."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await self._task
            self._task = None
        return self._response

    async def fail(self, error: LlmuxError) -> web.StreamResponse | None:
        """End the response with this error; None where none has begun."""
        response = await self.stop()
        if response is not None:
            await response.write(shapes.event_of(self._api, error))
            await response.write_eof()
        return response

    async def _tell(self) -> None:
        await asyncio.sleep(FIRST)
        headers = {
            hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
            hdrs.CACHE_CONTROL: "no-cache",
            # nginx would keep the comments until it has 4 kB of them.
            "X-Accel-Buffering": "no",
        }
        config = self._switcher.config
        if config.response_headers:
            headers[MODEL_HEADER] = in_latin(self._model)
        headers |= cors.granted(self._request, config)
        self._response = web.StreamResponse(headers=headers)
        await self._response.prepare(self._request)
        seconds = FIRST
        while True:
            await self._response.write(f": {self._words(seconds)}\n\n".encode())
            await asyncio.sleep(INTERVAL)
            seconds += INTERVAL

    def _words(self, seconds: float) -> str:
        model = self._switcher.model(self._model)
        state = self._switcher.state(self._model).value
        return f"llmux: {self._model} is {state}, {model.queued} wait for it, {seconds:.0f} s"
