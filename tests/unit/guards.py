# SPDX-License-Identifier: MIT
"""What every test is held to: ten seconds of work, and no task or child process left behind."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType

from dbus_next import DBusError

# Seconds of this process's own CPU time: how busy the host is with other things is not the test's.
LIMIT = 10.0
# What waits for good, a blocked event loop too, uses none: so many times as long on the wall.
WALL = 6
_TIMERS = ((signal.ITIMER_PROF, signal.SIGPROF, 1), (signal.ITIMER_REAL, signal.SIGALRM, WALL))


@contextlib.contextmanager
def time_limit(seconds: float = LIMIT) -> Iterator[None]:
    """Interrupt what works too long, or waits WALL times as long."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the test took more than {seconds:g} s of work, or {WALL} times that")

    with contextlib.ExitStack() as undo:
        for timer, number, times in _TIMERS:
            undo.callback(signal.signal, number, signal.signal(number, interrupt))
            undo.callback(signal.setitimer, timer, 0)
            signal.setitimer(timer, seconds * times)
        yield


def children() -> set[int]:
    """The processes that this one has started and not reaped."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


@contextlib.contextmanager
def no_child_left() -> Iterator[None]:
    """Fail where a process outlives the block that started it."""
    before = children()
    yield
    left = children() - before
    assert not left, f"processes left behind: {left}"


@contextlib.asynccontextmanager
async def no_task_left() -> AsyncIterator[None]:
    """Fail where a task outlives the block that started it, or died unheard."""
    loop = asyncio.get_running_loop()
    unheard: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: unheard.append(context))
    before = asyncio.all_tasks()
    yield
    for _ in range(5):  # a cancelled task needs a turn or two to end
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    for task in left:
        task.cancel()
    assert not left, f"tasks left behind: {left}"
    # dbus-next raises once more what an async method answered its caller with.
    unheard = [it for it in unheard if not isinstance(it.get("exception"), DBusError)]
    assert not unheard, f"nobody heard of: {unheard}"
