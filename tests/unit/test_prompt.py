# SPDX-License-Identifier: MIT
"""A future whose task goes on at once."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable

import pytest

from llmuxd.prompt import Prompt


class Waiting:
    """A task that awaits one, and what became of it."""

    def __init__(self) -> None:
        self.prompt: Prompt[int] = Prompt()
        self.got: list[object] = []
        self.task = asyncio.create_task(self._wait(self.prompt))

    async def _wait(self, what: Awaitable[int]) -> None:
        try:
            self.got.append(await what)
        except (ValueError, asyncio.CancelledError) as error:
            self.got.append(type(error))


async def turn() -> None:
    """The next of the event loop: what was scheduled has run."""
    await asyncio.sleep(0)


async def from_the_loop(waiting: Waiting, number: int) -> None:
    """Give it as a connection does that has been read, outside of all tasks."""
    done = asyncio.Event()

    def read() -> None:
        waiting.prompt.give(number)
        waiting.got.append("read")
        done.set()

    asyncio.get_running_loop().call_soon(read, context=contextvars.copy_context())
    await done.wait()


async def test_task_goes_on_before_the_giver_does() -> None:
    waiting = Waiting()
    await turn()
    await from_the_loop(waiting, 7)
    assert waiting.got == [7, "read"]
    await waiting.task


async def test_task_goes_on_later_where_another_gives() -> None:
    waiting = Waiting()
    await turn()
    waiting.prompt.give(7)
    assert waiting.got == []
    await waiting.task
    assert waiting.got == [7]


async def test_result_that_is_there_already() -> None:
    waiting = Waiting()
    waiting.prompt.give(7)
    await waiting.task
    assert waiting.got == [7]


async def test_otherwise_it_is_as_any_other() -> None:
    ends: tuple[tuple[Callable[[Waiting], object], object], ...] = (
        (lambda waiting: waiting.prompt.set_result(7), 7),
        (lambda waiting: waiting.prompt.set_exception(ValueError()), ValueError),
        (lambda waiting: waiting.prompt.cancel(), asyncio.CancelledError),
        (lambda waiting: waiting.task.cancel(), asyncio.CancelledError),
    )
    for end, found in ends:
        waiting = Waiting()
        await turn()
        end(waiting)
        assert waiting.got == []
        await asyncio.wait([waiting.task])
        assert waiting.got == [found]


async def test_others_may_watch_it() -> None:
    waiting = Waiting()
    await turn()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.shield(waiting.prompt)
    heard: list[object] = []
    waiting.prompt.add_done_callback(heard.append)
    await from_the_loop(waiting, 7)
    await turn()
    assert (waiting.got, heard) == ([7, "read"], [waiting.prompt])
