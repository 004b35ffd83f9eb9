# SPDX-License-Identifier: MIT
"""Queues for a few."""

import asyncio
from collections import deque

import aiohttp
from hypothesis import given
from hypothesis import strategies as st

from llmuxd.short import Short, shorten

from .engine import a_raw_server


@given(st.lists(st.sampled_from(["append", "appendleft", "popleft"]), max_size=30))
def test_it_does_what_a_deque_does(steps: list[str]) -> None:
    short: Short[int] = Short()
    wanted: deque[int] = deque()
    for number, step in enumerate(steps):
        if step != "popleft":
            getattr(short, step)(number)
            getattr(wanted, step)(number)
        elif wanted:
            assert short.popleft() == wanted.popleft()
        assert list(short) == list(wanted)


async def test_body_is_the_same_in_short_queues() -> None:
    """In the midst of it: what is in the queues already stays, and their order."""
    pieces = [b"%d" % number * 1000 for number in range(50)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    async with (
        a_raw_server(serve) as port,
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{port}") as response,
    ):
        got = [(await response.content.readchunk())[0] for _ in range(3)]
        shorten(response.content)
        while piece := (await response.content.readchunk())[0]:
            got.append(piece)
    assert b"".join(got) == b"".join(pieces)


def test_queues_that_are_none_stay() -> None:
    """One day aiohttp may have others, or call them otherwise."""

    class Other:
        __slots__ = ("_buffer",)

    other = Other()
    shorten(other)
    other._buffer = queue = [b"x"]  # type: ignore[attr-defined]
    shorten(other)
    assert other._buffer is queue  # type: ignore[attr-defined]
