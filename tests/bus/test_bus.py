# SPDX-License-Identifier: MIT
"""What llmuxd's own connection adds to dbus-next's."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from dbus_next import DBusError
from dbus_next import introspection as intr
from dbus_next.constants import PropertyAccess
from dbus_next.service import ServiceInterface, dbus_property, method

from llmuxd.bus import Bus
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
