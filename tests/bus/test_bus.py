# SPDX-License-Identifier: MIT
"""What llmuxd's own connection adds to dbus-next's."""

import asyncio
import fcntl
import termios
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from dbus_next import DBusError, Message
from dbus_next import introspection as intr
from dbus_next.constants import PropertyAccess
from dbus_next.service import ServiceInterface, dbus_property, method

from llmuxd.bus import MESSAGES_IN_A_ROW, Bus
from llmuxd.dbus_types import String, UInt32

from .private_bus import Caller, PrivateBus, Refused, leave

OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"


class Thing(ServiceInterface):
    def __init__(self) -> None:
        super().__init__("org.llmux.Manager")
        self.gate = asyncio.Event()
        self.gate.set()

    @method()
    async def Switch(self, model: String) -> String:  # noqa: N802
        await self.gate.wait()
        if model == "bad":
            raise DBusError("org.llmux.Error.NoSuchModel", "no")
        return model * 1000

    @method()
    async def Reload(self) -> None:  # noqa: N802
        await self.gate.wait()

    @dbus_property(access=PropertyAccess.READ)
    def Size(self) -> UInt32:  # noqa: N802
        return 7


@pytest.fixture
async def own(bus: PrivateBus, _tidy: None) -> AsyncIterator[Bus]:
    connection = Bus()
    await connection.connect()
    await connection.request_name("org.llmux")
    yield connection
    await leave(connection)


@pytest.fixture
async def caller(bus: PrivateBus, own: Bus) -> AsyncIterator[Caller]:
    found = await bus.connect()
    await found.listen()
    yield found
    await found.close()


async def node_at(caller: Caller, path: str) -> intr.Node:
    return intr.Node.parse(str(await caller.call(path, "Introspect", interface=INTROSPECTABLE)))


# Its end


async def test_a_call_on_a_lost_connection_is_answered(bus: PrivateBus) -> None:
    own = Bus()
    await own.connect()
    bus.stop()
    with pytest.raises(EOFError):
        await own.wait_for_disconnect()
    with pytest.raises(EOFError):
        await own.request_name("org.llmux")
    await leave(own)


async def test_a_bus_that_hangs_up_at_once_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As systemd's socket does where the daemon behind it dies before it has answered."""
    path = tmp_path / "socket"
    server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), path)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
    own = Bus()
    with pytest.raises((EOFError, OSError)):
        await own.connect()
    own._stream.close()
    own._sock.close()
    server.close()
    await server.wait_closed()


def waiting(bus: Bus) -> int:
    """The bytes that have come and were not read yet."""
    return int.from_bytes(fcntl.ioctl(bus._fd, termios.FIONREAD, bytes(4)), "little")


async def test_a_flood_of_calls_leaves_others_their_turns(
    own: Bus, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many messages have come, only a few are taken before everybody else had a turn."""
    own.export("/Manager", Thing())
    taken, most = 0, 0
    on_message: Callable[[Message], None] = own._on_message

    def count(message: Message) -> None:
        nonlocal taken, most
        taken += 1
        most = max(most, taken)
        on_message(message)

    def turn() -> None:
        nonlocal taken
        taken = 0
        if not done.done():
            asyncio.get_running_loop().call_soon(turn)

    monkeypatch.setattr(own, "_on_message", count)
    # dbus-daemon lets one connection wait for 128 answers.
    get = ("/Manager", "Get", "org.llmux.Manager", "Size")
    calls = [caller.call(*get, interface="org.freedesktop.DBus.Properties") for _ in range(100)]
    loop = asyncio.get_running_loop()
    loop.remove_reader(own._fd)
    done = asyncio.gather(*calls)
    # The kernel tells nobody but the reader.
    while waiting(own) < 100 * 150:  # noqa: ASYNC110
        await asyncio.sleep(0)
    loop.add_reader(own._fd, own._message_reader)
    turn()
    assert len(await done) == 100
    assert 1 < most <= 2 * MESSAGES_IN_A_ROW


# Methods


async def test_async_method_answers_and_refuses(own: Bus, caller: Caller) -> None:
    own.export("/Manager", Thing())
    assert await caller.call("/Manager", "Switch", "x") == "x" * 1000
    assert await caller.call("/Manager", "Reload") is None
    with pytest.raises(Refused, match="NoSuchModel: no"):
        await caller.call("/Manager", "Switch", "bad")


async def test_a_burst_does_not_cost_the_connection(own: Bus, caller: Caller) -> None:
    """A megabyte of answers falls due in one turn of the loop."""
    thing = Thing()
    own.export("/Manager", thing)
    thing.gate.clear()
    calls = [asyncio.create_task(caller.call("/Manager", "Switch", "x" * 10)) for _ in range(100)]
    await caller.get("/Manager", "org.llmux.Manager", "Size")
    thing.gate.set()
    assert await asyncio.gather(*calls) == ["x" * 10_000] * 100
    assert own.connected


# Objects


async def test_managed_objects_have_their_properties(own: Bus, caller: Caller) -> None:
    own.export("/Manager", Thing())
    found = await caller.call("/", "GetManagedObjects", interface=OBJECT_MANAGER)
    assert isinstance(found, dict)
    assert found.keys() == {"/Manager"}
    assert found["/Manager"]["org.llmux.Manager"]["Size"].value == 7


async def test_coming_and_going_is_told_by_the_root(own: Bus, caller: Caller) -> None:
    own.export("/Model/a", Thing())
    own.unexport("/Model/a")
    ((path, added),) = await caller.heard("InterfacesAdded")
    assert path == "/" and added[0] == "/Model/a"
    assert isinstance(added[1], dict)
    assert added[1]["org.llmux.Manager"]["Size"].value == 7
    assert await caller.heard("InterfacesRemoved") == [("/", ["/Model/a", ["org.llmux.Manager"]])]


async def test_only_the_root_is_an_object_manager(own: Bus, caller: Caller) -> None:
    own.export("/Manager", Thing())
    root = {each.name: each for each in (await node_at(caller, "/")).interfaces}
    assert [each.name for each in root[OBJECT_MANAGER].methods] == ["GetManagedObjects"]
    assert [
        (each.name, [arg.signature for arg in each.args]) for each in root[OBJECT_MANAGER].signals
    ] == [("InterfacesAdded", ["o", "a{sa{sv}}"]), ("InterfacesRemoved", ["o", "as"])]
    names = {each.name for each in (await node_at(caller, "/Manager")).interfaces}
    assert OBJECT_MANAGER not in names and "org.freedesktop.DBus.Properties" in names


async def test_tree_has_no_objects_that_are_not_there(own: Bus, caller: Caller) -> None:
    for path in ("/Job/1", "/Job/12", "/Model/a", "/Manager"):
        own.export(path, Thing())
    tree = {
        path: [each.name for each in (await node_at(caller, path)).nodes]
        for path in ("/", "/Job", "/Job/1", "/Manager", "/Nowhere")
    }
    assert tree == {
        "/": ["Job", "Manager", "Model"], "/Job": ["1", "12"], "/Job/1": [], "/Manager": [],
        "/Nowhere": [],
    }  # fmt: skip
