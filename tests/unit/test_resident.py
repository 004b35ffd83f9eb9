# SPDX-License-Identifier: MIT
"""The helper that stays in a model's unit, as a real process, and llmuxd asking it."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from llmuxd import files, helper
from llmuxd.errors import UnitRefused
from llmuxd.model.activation import socket_path, take_park_order
from llmuxd.units import Units

SCRIPT = """
import os, sys
from pathlib import Path
from llmuxd.model import resident
def act(verb):
    with Path(sys.argv[2]).open("a") as log:
        log.write(f"{verb} {os.getpid()}\\n")
    if verb == "wake":
        raise ValueError("a bug")
    return "done"
resident.stay("a", int(sys.argv[1]), act)
"""


class Reloads(Units):
    """What a unit's reload finds."""

    def __init__(self) -> None:
        super().__init__()
        self.parks: list[bool] = []

    async def reload(self, name: str) -> str:
        self.parks.append(take_park_order(name) is not None)
        return "done"


class Stayed:
    """A resident helper, the process that it watches, and what it did."""

    def __init__(self) -> None:
        files.runtime_root().mkdir(parents=True, exist_ok=True)
        self.log = files.runtime_root() / "log"
        self.conmon = subprocess.Popen([sys.executable, "-S", "-c", "input()"],
                                       stdin=subprocess.PIPE)  # fmt: skip
        argv = [sys.executable, "-c", SCRIPT, str(self.conmon.pid), str(self.log)]
        self.process = subprocess.Popen(argv)

    async def listens(self) -> None:
        """Its socket can be connected to."""
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_unix_connection(socket_path("a"))
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(0.01)

    def did(self) -> list[tuple[str, int]]:
        """Each verb, and the process that carried it out."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(verb, int(pid)) for verb, pid in map(str.split, lines)]


@pytest.fixture
def stayed() -> Iterator[Stayed]:
    """It ends with what it watches."""
    stayed = Stayed()
    yield stayed
    stayed.conmon.communicate(b"\n")
    assert stayed.process.wait(10) == 0
    assert not socket_path("a").exists()


async def test_each_verb_is_done_by_a_process_of_its_own(stayed: Stayed) -> None:
    await stayed.listens()
    units = Reloads()
    await helper.park(units, "a")
    await helper.park(units, "a")
    assert units.parks == []
    parks = [pid for verb, pid in stayed.did() if verb == "park"]
    assert len(set(parks)) == 2 and stayed.process.pid not in parks
    assert socket_path("a").stat().st_mode & 0o777 == 0o600


async def test_one_that_fails_leaves_it_to_a_reload(stayed: Stayed) -> None:
    await stayed.listens()
    units = Reloads()
    await helper.wake(units, "a")
    assert units.parks == [False]
    await helper.park(units, "a")
    assert units.parks == [False]


async def test_without_one_the_unit_is_reloaded() -> None:
    units = Reloads()
    await helper.park(units, "a")
    await helper.wake(units, "a")
    assert units.parks == [True, False]


async def test_an_order_that_was_not_carried_out_is_taken_back() -> None:
    class Refuses(Units):
        async def reload(self, name: str) -> str:
            raise UnitRefused("systemd refused")

    with pytest.raises(UnitRefused):
        await helper.park(Refuses(), "a")
    assert not take_park_order("a")
