# SPDX-License-Identifier: MIT
import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
from dbus_next import Variant
from dbus_next.aio import MessageBus
from dbus_next.constants import BusType

from llmuxd import __version__, names
from llmuxd.control import Control
from llmuxd.errors import ConfigInvalid, SystemdUnreachable
from llmuxd.state import State
from tests.unit.fake_units import a_checkpoint, a_model
from tests.unit.stage import Stage, on_stage

from .private_bus import NOBODY, Caller, PrivateBus, Refused, leave

QWEN = "Qwen/Qwen2.5-3B-Instruct"
MANAGER = "org.llmux.Manager"
MODEL = "org.llmux.Model"
JOB = "org.llmux.Job"
PATH = "/Model/Qwen_2fQwen2_2e5_2d3B_2dInstruct"


@dataclass
class House:
    """The real Control on the private bus, over a switcher over fake units; and a caller."""

    stage: Stage
    control: Control
    bus: PrivateBus
    own: MessageBus
    caller: Caller
    reloads: list[int]
    reload_error: list[Exception]


@pytest.fixture
async def house(bus: PrivateBus, _tidy: None) -> AsyncIterator[House]:
    models = (a_model(QWEN, aliases=("qwen",)), replace(a_model("b"), devices=()))
    async with on_stage(*models) as stage:
        reloads: list[int] = []
        failing: list[Exception] = []

        async def reload() -> None:
            reloads.append(1)
            if failing:
                raise failing.pop()

        control = Control(stage.switcher, reload)
        stage.hear_jobs()
        own = await MessageBus(bus_type=BusType.SYSTEM).connect()
        await control.attach(own)
        caller = await bus.connect()
        await caller.listen()
        made = House(stage, control, bus, own, caller, reloads, failing)
        yield made
        await caller.close()
        await leave(made.own)


# Reading


async def test_models_are_listed(house: House) -> None:
    assert await house.caller.call("/Manager", "ListModels") == [
        [QWEN, "cold", PATH, "llmux-model@Qwen-Qwen2.5\\x2d3B\\x2dInstruct.service"],
        ["b", "cold", "/Model/b", "llmux-model@b.service"],
    ]


async def test_model_is_found_by_name_and_alias(house: House) -> None:
    assert await house.caller.call("/Manager", "GetModel", QWEN) == PATH
    assert await house.caller.call("/Manager", "GetModel", "qwen") == PATH


async def test_properties_of_the_manager(house: House) -> None:
    await house.stage.ask("b")
    assert await house.caller.get_all("/Manager", MANAGER) == {
        "Version": __version__, "ActiveModels": ["b"], "QueueLength": 0,
    }  # fmt: skip


async def test_properties_of_a_cold_model(house: House) -> None:
    assert await house.caller.get_all(PATH, MODEL) == {
        "Name": QWEN, "Aliases": ["qwen"], "State": "cold", "Unit": names.unit(QWEN),
        "Endpoint": "", "InFlight": 0, "Queued": 0, "LastUsed": 0.0, "ActivatedBy": "",
        "ActivationSeconds": 0.0, "CheckpointValid": False,
        "CheckpointWhyNot": "none was taken", "CheckpointSize": 0, "CheckpointSeconds": 0.0,
        "LastError": "",
    }  # fmt: skip


async def test_properties_of_a_serving_model(house: House) -> None:
    house.stage.units.ports[QWEN] = 21007
    client = house.stage.client(QWEN)
    await client.admitted.wait()
    found = await house.caller.get_all(PATH, MODEL)
    assert (found["State"], found["Endpoint"], found["InFlight"], found["ActivatedBy"]) == (
        "serving", "http://127.0.0.1:21007", 1, "cold",
    )  # fmt: skip
    assert isinstance(found["LastUsed"], float) and found["LastUsed"] > 1.7e9
    assert found["ActivationSeconds"] == 1.5


async def test_properties_of_a_checkpoint(house: House) -> None:
    a_checkpoint(a_model(QWEN)).save()
    await house.stage.switcher.adopt()
    found = await house.caller.get_all(PATH, MODEL)
    assert (found["State"], found["CheckpointValid"], found["CheckpointWhyNot"]) == (
        "checkpointed", True, "",
    )  # fmt: skip
    assert (found["CheckpointSize"], found["CheckpointSeconds"]) == (3, 2.0)


async def test_invalid_checkpoint_says_why(house: House) -> None:
    a_checkpoint(a_model(QWEN)).invalidate("the kernel changed")
    await house.stage.switcher.adopt()
    assert await house.caller.get(PATH, MODEL, "CheckpointWhyNot") == "the kernel changed"
    assert await house.caller.get(PATH, MODEL, "State") == "cold"


async def test_introspection_names_every_member(house: House) -> None:
    xml = await house.caller.call(
        "/Manager", "Introspect", interface="org.freedesktop.DBus.Introspectable"
    )
    for member in (
        "Switch", "Checkpoint", "Park", "Warmup", "Stop", "Reload", "ListModels", "GetModel",
        "ListJobs", "Version", "ActiveModels", "QueueLength", "JobNew", "JobRemoved",
    ):  # fmt: skip
        assert f'name="{member}"' in str(xml)


# Jobs


async def test_switch_answers_with_a_job_at_once(house: House) -> None:
    gate = house.stage.units.hold("start", QWEN)
    job = await house.caller.call("/Manager", "Switch", "qwen")
    assert job == "/Job/1"
    await gate.reached.wait()
    assert await house.caller.call("/Manager", "ListJobs") == [[1, "switch", QWEN, "/Job/1"]]
    found = await house.caller.get_all("/Job/1", JOB)
    started = found.pop("Started")
    assert isinstance(started, float) and started > 1.7e9
    assert found == {"Kind": "switch", "Model": QWEN, "Phase": "starting"}
    gate.open()
    assert await house.caller.heard("JobRemoved") == [
        ("/Manager", [1, "/Job/1", QWEN, "done"]),
    ]
    assert await house.caller.heard("JobNew") == [("/Manager", [1, "/Job/1", QWEN])]
    assert await house.caller.call("/Manager", "ListJobs") in (None, [])


async def test_ended_job_is_no_object_any_more(house: House) -> None:
    await house.caller.call("/Manager", "Switch", QWEN)
    await house.caller.heard("JobRemoved")
    with pytest.raises(Refused):
        await house.caller.call("/Job/1", "Cancel", interface=JOB)


async def test_failed_job_says_so_and_why(house: House) -> None:
    house.stage.units.break_verb("start", QWEN)
    house.stage.switcher.model(QWEN).failures = 1
    job = house.stage.switcher.switch(QWEN)
    house.stage.switcher.model(QWEN).failures = 1
    assert await house.stage.result(job) == "failed"
    assert (await house.caller.heard("JobRemoved"))[0][1][3] == "failed"
    phases = [
        body[1]["Phase"].value
        for path, body in await house.caller.heard("PropertiesChanged")
        if path == job.path and isinstance(body[1], dict)
    ]
    assert "it ran out of memory" in phases[-1]


async def test_job_can_be_cancelled(house: House) -> None:
    gate = house.stage.units.hold("start", QWEN)
    await house.caller.call("/Manager", "Switch", QWEN)
    await gate.reached.wait()
    await house.caller.call("/Job/1", "Cancel", interface=JOB)
    assert (await house.caller.heard("JobRemoved"))[0][1] == [1, "/Job/1", QWEN, "canceled"]
    gate.open()


async def test_cancel_in_the_same_breath_is_heard(house: House) -> None:
    """Both calls are in the socket before either is read."""
    switch = asyncio.create_task(house.caller.call("/Manager", "Switch", QWEN))
    cancel = asyncio.create_task(house.caller.call("/Job/1", "Cancel", interface=JOB))
    await asyncio.gather(switch, cancel)
    assert (await house.caller.heard("JobRemoved"))[0][1][3] == "canceled"


@pytest.mark.parametrize(
    ("member", "kind", "log"),
    [
        ("Checkpoint", "checkpoint", ["start b", "stop b"]),
        ("Park", "park", ["start b", "freeze b"]),
        ("Warmup", "warmup", ["start b", "stop b"]),
        ("Stop", "stop", ["start b", "stop b"]),
        ("Switch", "switch", ["start b"]),
    ],
)
async def test_each_method_does_its_work(
    house: House, member: str, kind: str, log: list[str]
) -> None:
    await house.stage.ask("b")
    assert await house.caller.call("/Manager", member, "b") == "/Job/1"
    assert (await house.caller.heard("JobRemoved"))[0][1][3] == "done"
    assert house.stage.units.log == log
    assert str(house.stage.ended[0].kind) == kind


async def test_reload_is_called(house: House) -> None:
    assert await house.caller.call("/Manager", "Reload") is None
    assert house.reloads == [1]


# Errors


async def refused(house: House, path: str, member: str, *arguments: object) -> Refused:
    with pytest.raises(Refused) as caught:
        await house.caller.call(path, member, *arguments)
    text = caught.value.text
    assert "Traceback" not in text and ".py" not in text and "\n" not in text
    return caught.value


@pytest.mark.parametrize("member", ["Switch", "Checkpoint", "Park", "Warmup", "Stop", "GetModel"])
async def test_unknown_model_has_its_name_and_the_nearest(house: House, member: str) -> None:
    error = await refused(house, "/Manager", member, "qwne")
    assert error.name == "org.llmux.Error.NoSuchModel"
    assert "did you mean 'qwen'?" in error.text


async def test_what_cannot_be_has_its_name(house: House) -> None:
    error = await refused(house, "/Manager", "Park", QWEN)
    assert error.name == "org.llmux.Error.NotSupported"
    error = await refused(house, "/Manager", "Checkpoint", "b")
    assert error.name == "org.llmux.Error.NotRunning"
    assert "llmuxctl warmup b" in error.text


async def test_bad_configuration_has_its_name(house: House) -> None:
    house.reload_error.append(ConfigInvalid("llmux.yaml:3:5: unknown key 'x'"))
    error = await refused(house, "/Manager", "Reload")
    assert error.name == "org.llmux.Error.ConfigInvalid"
    assert error.text == "llmux.yaml:3:5: unknown key 'x'"


async def test_a_bug_in_a_method_tells_nothing(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.reload_error.append(RuntimeError("secret /path"))
    error = await refused(house, "/Manager", "Reload")
    assert error.name == "org.llmux.Error.Internal"
    assert "secret" not in error.text and "journalctl -u llmuxd" in error.text
    assert "secret /path" in caplog.text


async def test_a_bug_in_a_property_tells_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> int:
        raise RuntimeError("secret /path")

    monkeypatch.setattr(house.stage.switcher, "queue_length", broken)
    for call in (
        house.caller.get("/Manager", MANAGER, "QueueLength"),
        house.caller.get_all("/Manager", MANAGER),
    ):
        with pytest.raises(Refused) as caught:
            await call
        assert caught.value.name == "org.llmux.Error.Internal"
        assert "secret" not in caught.value.text and ".py" not in caught.value.text
    monkeypatch.undo()


async def test_refusals_do_not_fill_the_journal(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    await refused(house, "/Manager", "Switch", "zzz")
    await house.stage.settle()
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("path", "member", "arguments"),
    [("/Manager", "Fly", ()), ("/Nowhere", "Switch", ("b",)), ("/Manager", "Switch", ())],
)
async def test_what_is_not_there_is_an_unknown_method(
    house: House, path: str, member: str, arguments: tuple[str, ...]
) -> None:
    error = await refused(house, path, member, *arguments)
    assert error.name == "org.freedesktop.DBus.Error.UnknownMethod"


async def test_properties_cannot_be_written(house: House) -> None:
    with pytest.raises(Refused) as caught:
        await house.caller.call(
            "/Manager", "Set", MANAGER, "Version", Variant("s", "9"),
            interface="org.freedesktop.DBus.Properties", signature="ssv",
        )  # fmt: skip
    assert caught.value.name == "org.freedesktop.DBus.Error.PropertyReadOnly"


# Signals


async def test_properties_changed_has_what_changed_and_nothing_else(house: House) -> None:
    await house.stage.ask("b")
    client = house.stage.client("b")
    await client.admitted.wait()
    await house.stage.settle()
    await house.caller.get("/Manager", MANAGER, "Version")
    house.caller.signals.clear()
    await client.finish()
    path, body = (await house.caller.heard("PropertiesChanged"))[0]
    assert path == "/Model/b" and body[0] == MODEL and body[2] == []
    assert isinstance(body[1], dict)
    assert body[1].keys() == {"InFlight", "LastUsed"}
    assert body[1]["InFlight"] == Variant("u", 0)


async def test_signals_alone_keep_a_listener_up_to_date(house: House) -> None:
    """Whoever applies each signal to what was read at the begin has what is read at the end."""
    paths = {"/Manager": MANAGER, PATH: MODEL, "/Model/b": MODEL}
    known = {path: await house.caller.get_all(path, name) for path, name in paths.items()}
    house.stage.units.break_verb("start", "b", times=1)
    for name in (QWEN, "b", QWEN):
        await house.stage.ask(name)
    await house.stage.result(house.stage.switcher.stop(QWEN))
    client = house.stage.client("b")
    await client.admitted.wait()
    await house.stage.settle()
    truth = {path: await house.caller.get_all(path, name) for path, name in paths.items()}
    for path, body in await house.caller.heard("PropertiesChanged"):
        if path in known:
            assert isinstance(body[1], dict)
            known[path] |= {key: value.value for key, value in body[1].items()}
    assert known == truth


async def test_the_manager_repeats_nothing(house: House) -> None:
    await house.stage.ask("b")
    await house.stage.settle()
    await house.caller.get("/Manager", MANAGER, "Version")
    seen: list[object] = []
    for path, body in await house.caller.heard("PropertiesChanged"):
        if path == "/Manager":
            assert isinstance(body[1], dict)
            seen += [("ActiveModels", v.value) for k, v in body[1].items() if k == "ActiveModels"]
    assert seen == [("ActiveModels", ["b"])]


async def test_reload_adds_and_removes_objects(house: House) -> None:
    house.stage.reload(a_model("c"))
    await house.stage.until(lambda: house.stage.switcher.names() == ["c"])
    assert await house.caller.get("/Model/c", MODEL, "State") == "cold"
    with pytest.raises(Refused):
        await house.caller.get("/Model/b", MODEL, "State")
    assert await house.caller.call("/Manager", "GetModel", "c") == "/Model/c"


async def test_a_crowd_let_in_at_once_does_not_cost_the_connection(house: House) -> None:
    gate = house.stage.units.hold("start", "b")
    clients = [house.stage.client("b") for _ in range(1000)]
    await gate.reached.wait()
    gate.open()
    for client in clients:
        await client.admitted.wait()
    async with asyncio.timeout(5):
        assert await house.caller.get("/Model/b", MODEL, "InFlight") == 1000


# The name


async def test_a_second_llmuxd_is_told_so(house: House) -> None:
    async with on_stage(a_model("z")) as stage:
        second = Control(stage.switcher, house.control._manager._reload)
        own = await MessageBus(bus_type=BusType.SYSTEM).connect()
        with pytest.raises(SystemdUnreachable, match="another process owns"):
            await second.attach(own)
        await leave(own)


async def test_it_moves_to_a_new_connection(house: House) -> None:
    gate = house.stage.units.hold("start", "b")
    await house.caller.call("/Manager", "Switch", "b")
    await gate.reached.wait()
    house.control.detach()
    await leave(house.own)
    house.stage.switcher.listeners[0](QWEN)  # nobody to tell
    house.own = await MessageBus(bus_type=BusType.SYSTEM).connect()
    await house.control.attach(house.own)
    assert await house.caller.call("/Manager", "ListJobs") == [[1, "switch", "b", "/Job/1"]]
    assert await house.caller.get("/Job/1", JOB, "Model") == "b"
    gate.open()
    assert (await house.caller.heard("JobRemoved"))[-1][1][3] == "done"
    assert house.stage.switcher.state("b") is State.SERVING


# The shipped policy

READS = [
    ("/Manager", MANAGER, "ListModels", ()),
    ("/Manager", MANAGER, "GetModel", ("b",)),
    ("/Manager", MANAGER, "ListJobs", ()),
    ("/Manager", "org.freedesktop.DBus.Properties", "GetAll", (MANAGER,)),
    ("/Model/b", "org.freedesktop.DBus.Properties", "Get", (MODEL, "State")),
    ("/Manager", "org.freedesktop.DBus.Introspectable", "Introspect", ()),
    ("/Manager", "org.freedesktop.DBus.Peer", "Ping", ()),
    ("/", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", ()),
]
CHANGES = [
    ("/Manager", MANAGER, "Switch", ("b",)),
    ("/Manager", MANAGER, "Checkpoint", ("b",)),
    ("/Manager", MANAGER, "Park", ("b",)),
    ("/Manager", MANAGER, "Warmup", ("b",)),
    ("/Manager", MANAGER, "Stop", ("b",)),
    ("/Manager", MANAGER, "Reload", ()),
    ("/Job/1", JOB, "Cancel", ()),
    ("/Manager", "org.freedesktop.DBus.Properties", "Set", (MANAGER, "Version", "x")),
    ("/Manager", MANAGER, "NotInventedYet", ()),
]


def test_every_method_is_on_one_side_or_the_other() -> None:
    from llmuxd.control import JobInterface, ManagerInterface

    known = {member for _, _, member, _ in READS + CHANGES}
    for interface in (ManagerInterface, JobInterface):
        for method in (m for m in vars(interface).values() if hasattr(m, "__DBUS_METHOD")):
            assert getattr(method, "__DBUS_METHOD").name in known


@pytest.mark.parametrize(("path", "interface", "member", "arguments"), READS)
async def test_everybody_may_read(
    house: House, path: str, interface: str, member: str, arguments: tuple[str, ...]
) -> None:
    stranger = await house.bus.connect(NOBODY)
    await stranger.call(path, member, *arguments, interface=interface)
    await stranger.close()


@pytest.mark.parametrize(("path", "interface", "member", "arguments"), CHANGES)
@pytest.mark.parametrize("destination", ["org.llmux", "its unique name"])
async def test_only_root_may_change(
    house: House,
    path: str,
    interface: str,
    member: str,
    arguments: tuple[str, ...],
    destination: str,
) -> None:
    assert house.own.unique_name is not None
    to = "org.llmux" if destination == "org.llmux" else house.own.unique_name
    stranger = await house.bus.connect(NOBODY)
    with pytest.raises(Refused) as caught:
        await stranger.call(path, member, *arguments, interface=interface, destination=to)
    assert caught.value.name == "org.freedesktop.DBus.Error.AccessDenied"
    assert house.stage.switcher.jobs.all() == [] and house.reloads == []
    await stranger.close()


async def test_everybody_hears_the_signals(house: House) -> None:
    stranger = await house.bus.connect(NOBODY)
    await stranger.listen()
    await house.caller.call("/Manager", "Switch", "b")
    assert (await stranger.heard("JobRemoved"))[0][1][3] == "done"
    await stranger.close()


async def test_only_root_may_be_llmuxd(bus: PrivateBus) -> None:
    stranger = await bus.connect(NOBODY)
    with pytest.raises(Refused) as caught:
        await stranger.call(
            "/org/freedesktop/DBus", "RequestName", "org.llmux", 0, signature="su",
            interface="org.freedesktop.DBus", destination="org.freedesktop.DBus",
        )  # fmt: skip
    assert caught.value.name == "org.freedesktop.DBus.Error.AccessDenied"
    await stranger.close()
