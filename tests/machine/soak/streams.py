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
        run = files.runtime_root() / f"{names.slug(model)}.json"
        port = json.loads(await asyncio.to_thread(run.read_text, "utf-8"))["port"]
        past = asyncio.create_task(_longest(int(port), model, begun))
        return (await through - await past) * 1000
    finally:
        first.set()
        begun.set()


async def _longest(port: int, model: str, first: asyncio.Event) -> float:
    body = {
        "model": model, "prompt": "x", "stream": True, "max_tokens": int(SECONDS / PACE),
        "fake": {"seconds_per_token": PACE},
    }  # fmt: skip
    url = f"http://127.0.0.1:{port}/v1/completions"
    longest = 0.0
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
        session.post(url, json=body) as response,
    ):
        if response.status != 200:
            raise OSError(f"the stream was refused: {await response.text()}")
        before = 0.0
        async for _ in response.content.iter_any():
            now = time.monotonic()
            longest, before = max(longest, now - (before or now)), now
            first.set()
    return longest
