# SPDX-License-Identifier: MIT
"""Two streams of one engine, one through llmuxd and one past it: whose gaps are whose."""

import asyncio
import json
import time

import aiohttp

from llmuxd import files, names

PACE = 0.02
SECONDS = 12.0


async def gaps(model: str, begun: asyncio.Event) -> float:
    """How much longer the longest gap was through llmuxd than past it, in milliseconds.

    `begun` is set once both run.
    """
    first = asyncio.Event()
    through = asyncio.create_task(_longest(4000, model, first))
    try:
        # From its first token on the model stays where it is.
        await first.wait()
        if through.done():
            await through
        run = files.runtime_root() / f"{names.slug(model)}.json"
        port = json.loads(await asyncio.to_thread(run.read_text, "utf-8"))["port"]
        past = asyncio.create_task(_longest(int(port), model, begun))
        return (await through - await past) * 1000
    finally:
        begun.set()


async def _longest(port: int, model: str, first: asyncio.Event) -> float:
    body = {
        "model": model, "prompt": "x", "stream": True, "max_tokens": int(SECONDS / PACE),
        "fake": {"seconds_per_token": PACE},
    }  # fmt: skip
    url = f"http://127.0.0.1:{port}/v1/completions"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
            session.post(url, json=body) as response,
        ):
            if response.status != 200:
                raise OSError(f"the stream was refused: {await response.text()}")
            return await _gap(response, first)
    finally:
        first.set()


async def _gap(response: aiohttp.ClientResponse, first: asyncio.Event) -> float:
    longest, before = 0.0, time.monotonic()
    async for _ in response.content.iter_any():
        now = time.monotonic()
        if first.is_set():
            longest = max(longest, now - before)
        before = now
        first.set()
    return longest
