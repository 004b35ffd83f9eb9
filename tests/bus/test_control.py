# SPDX-License-Identifier: MIT
import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
from dbus_next import Message, MessageFlag, MessageType, Variant

from llmuxd import __version__, authority, memory, names
from llmuxd.bus import Bus
from llmuxd.config import Sleep, Tier
from llmuxd.control import Control
from llmuxd.costs import Cost
from llmuxd.errors import ConfigInvalid, SystemdUnreachable
from llmuxd.gpus import Gpus
from llmuxd.meter.reading import GpuMemory, Holder, Reading
from llmuxd.model.tuning import Figures, Tuning
from llmuxd.state import State
from tests.unit.fake_units import a_checkpoint, a_model, an_identity
from tests.unit.stage import Stage, on_stage

from .polkit import CHALLENGE, NO, YES, Polkit
from .private_bus import NOBODY, Caller, PrivateBus, Refused, leave

QWEN = "Qwen/Qwen2.5-3B-Instruct"
MANAGER = "org.llmux.Manager"
MODEL = "org.llmux.Model"
JOB = "org.llmux.Job"
DENIED = "org.llmux.Error.AccessDenied"
STOPPED_BY_THE_BUS = "org.freedesktop.DBus.Error.AccessDenied"
INTERACTIVE = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
PATH = "/Model/Qwen_2fQwen2_2e5_2d3B_2dInstruct"


@dataclass
class House:
    """The real Control on the private bus, over a switcher over fake units; and a caller."""

    stage: Stage
    control: Control
    bus: PrivateBus
    own: Bus
    caller: Caller
    gpus: Gpus
    reloads: list[int]
    reload_error: list[Exception]

    def changes(self, path: str, name: str) -> list[Any]:
        """The values of one property that were signalled."""
        told: list[Any] = [
            body[1] for at, member, body in self.caller.signals
            if member == "PropertiesChanged" and at == path
        ]  # fmt: skip
        return [changed[name].value for changed in told if name in changed]

    async def told(self) -> None:
        """All that there is to tell was told, and heard."""
        await self.stage.settle()
        self.control._flush()
        await self.caller.get("/Manager", MANAGER, "Version")


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

        gpus = Gpus()
        control = Control(stage.switcher, gpus, reload)
        stage.hear_jobs()
        own = Bus()
        await own.connect()
        await control.attach(own)
        caller = await bus.connect()
        await caller.listen()
        made = House(stage, control, bus, own, caller, gpus, reloads, failing)
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
        "Version": __version__, "ActiveModels": ["b"], "QueueLength": 0, "GPUs": [],
    }  # fmt: skip


async def test_properties_of_a_cold_model(house: House) -> None:
    assert await house.caller.get_all(PATH, MODEL) == {
        "Name": QWEN, "Aliases": ["qwen"], "State": "cold", "Tier": "checkpoint",
        "GPUs": [0], "Unit": names.unit(QWEN),
        "Endpoint": "", "InFlight": 0, "Queued": 0, "LastUsed": 0.0, "ActivatedBy": "",
        "ActivationSeconds": 0.0, "LastActivation": "", "LastActivationSeconds": 0.0,
        "CheckpointValid": False,
        "CheckpointWhyNot": "none was taken", "CheckpointSize": 0, "CheckpointSeconds": 0.0,
        "CheckpointTaken": 0.0, "CheckpointIdentity": {}, "Failures": 0, "LastError": "",
        "LettingGo": [["image_sleep", "2", "default"], ["park_sleep", "1", "default"]],
        "Tuning": [], "TuningTaken": 0.0, "TuningWhyNot": "it was not tuned",
        "Pinned": False, "IdleSince": 0.0, "Costs": {}, "Restarts": 0,
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
    taken = a_checkpoint(a_model(QWEN))
    assert found["CheckpointTaken"] == taken.taken_at > 0
    assert found["CheckpointIdentity"] == asdict(taken.identity)


async def test_properties_of_what_was_measured(house: House) -> None:
    figures = (
        Figures(Tier.CHECKPOINT, Sleep.KV, 7.5, 6.5, 9 << 30, 3),
        Figures(Tier.PARK, Sleep.OFF, failed="its canary says no"),
    )
    made = Tuning(QWEN, an_identity(a_model(QWEN)), 1.8e9, figures, {Tier.CHECKPOINT: Sleep.KV})
    made.save()
    await house.stage.switcher.adopt()
    found = await house.caller.get_all(PATH, MODEL)
    assert found["LettingGo"] == [["image_sleep", "kv", "tuned"], ["park_sleep", "1", "default"]]
    assert found["Tuning"] == [
        ["image_sleep", "kv", 7.5, 6.5, 9 << 30, 3, ""],
        ["park_sleep", "off", 0.0, 0.0, 0, 0, "its canary says no"],
    ]
    assert (found["TuningTaken"], found["TuningWhyNot"]) == (1.8e9, "")
    house.stage.reload(
        replace(a_model(QWEN), args=("--other",), park_sleep=Sleep.OFF), a_model("b")
    )
    await house.told()
    found = await house.caller.get_all(PATH, MODEL)
    assert found["LettingGo"] == [["image_sleep", "2", "default"], ["park_sleep", "off", "config"]]
    assert found["TuningWhyNot"] == "the model's definition in llmux.yaml changed"
    assert house.changes(PATH, "TuningWhyNot")[-1] == found["TuningWhyNot"]


async def test_invalid_checkpoint_says_why(house: House) -> None:
    a_checkpoint(a_model(QWEN)).invalidate("the kernel changed")
    await house.stage.switcher.adopt()
    assert await house.caller.get(PATH, MODEL, "CheckpointWhyNot") == "the kernel changed"
    assert await house.caller.get(PATH, MODEL, "State") == "cold"


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
    assert found == {
        "Kind": "switch", "Model": QWEN, "Phase": "starting", "Progress": 0,
        "ExpectedSeconds": 0.0,
    }  # fmt: skip
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
    assert await house.caller.get(PATH, MODEL, "Failures") == 1
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
    """The job is told to go before its first step."""
    job = house.stage.switcher.switch(QWEN)
    house.stage.switcher.jobs.cancel(job.number)
    assert (await house.caller.heard("JobRemoved"))[0][1][3] == "canceled"


@pytest.mark.parametrize(
    ("member", "kind", "log"),
    [
        ("Checkpoint", "checkpoint", ["start b", "stop b"]),
        ("Park", "park", ["start b", "reload b"]),
        ("Warmup", "warmup", ["start b", "stop b"]),
        ("Tune", "tune", ["start b", "stop b"]),
        ("Stop", "stop", ["start b", "stop b"]),
        ("Switch", "switch", ["start b"]),
        ("Preload", "preload", ["start b"]),
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


@pytest.mark.parametrize(
    "member",
    [
        "Switch",
        "Preload",
        "Pin",
        "Unpin",
        "Checkpoint",
        "Park",
        "Warmup",
        "Tune",
        "Stop",
        "GetModel",
    ],
)
async def test_unknown_model_has_its_name_and_the_nearest(house: House, member: str) -> None:
    error = await refused(house, "/Manager", member, "qwne")
    assert error.name == "org.llmux.Error.NoSuchModel"
    assert "did you mean 'qwen'?" in error.text


async def test_what_cannot_be_has_its_name(house: House) -> None:
    error = await refused(house, "/Manager", "Park", QWEN)
    assert error.name == "org.llmux.Error.NotRunning"
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


PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
STRANGE: list[tuple[str, str, str, str, list[object]]] = [
    ("/Manager", MANAGER, "Switch", "u", [7]),
    ("/Manager", MANAGER, "Switch", "ss", ["a", "b"]),
    ("/Manager", MANAGER, "Switch", "s", ["\x07\n../../etc/passwd"]),
    ("/Manager", MANAGER, "Switch", "s", [""]),
    ("/Manager", MANAGER, "Pin", "s", ["x" * 100_000]),
    ("/Manager", MANAGER, "GetModel", "v", [Variant("s", "b")]),
    ("/Manager", MANAGER, "switch", "s", ["b"]),
    ("/Manager", MANAGER, "_translated", "", []),
    ("/Manager", JOB, "Cancel", "", []),
    ("/Job/1", JOB, "Cancel", "s", ["now"]),
    ("/Job/99999999999999999999", JOB, "Cancel", "", []),
    ("/Manager", PROPERTIES, "Get", "ss", ["org.llmux.Nothing", "Version"]),
    ("/Manager", PROPERTIES, "Get", "ss", [MANAGER, "Nothing"]),
    ("/Manager", PROPERTIES, "Get", "ss", [MANAGER, "__class__"]),
    ("/Manager", PROPERTIES, "Get", "s", [MANAGER]),
    ("/Manager", PROPERTIES, "GetAll", "s", ["org.llmux.Nothing"]),
    ("/Manager", PROPERTIES, "GetAll", "u", [1]),
    ("/Nowhere", PROPERTIES, "GetAll", "s", [MANAGER]),
    ("/Manager", PROPERTIES, "Set", "ssv", [MANAGER, "Nothing", Variant("s", "")]),
    ("/Manager", INTROSPECTABLE, "Introspect", "s", ["x"]),
    ("/Manager", "org.freedesktop.DBus.Peer", "Pong", "", []),
]


@pytest.mark.parametrize(("path", "interface", "member", "signature", "body"), STRANGE)
async def test_who_calls_strangely_is_told_so_and_no_more(
    house: House, caplog: pytest.LogCaptureFixture, path: str, interface: str, member: str,
    signature: str, body: list[object],
) -> None:  # fmt: skip
    house.stage.units.hold("start", "b")
    house.stage.switcher.switch("b")
    with pytest.raises(Refused) as caught:
        await house.caller.call(path, member, *body, interface=interface, signature=signature)
    assert caught.value.name.startswith(("org.freedesktop.DBus.Error.", "org.llmux.Error."))
    assert "Traceback" not in caught.value.text and ".py" not in caught.value.text
    assert len(caught.value.text) < 300 + sum(len(str(each)) for each in body)
    assert "Traceback" not in caplog.text
    assert await house.caller.get("/Manager", MANAGER, "QueueLength") == 0
    assert [job.number for job in house.stage.switcher.jobs.all()] == [1]


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
    await house.told()
    house.caller.signals.clear()
    await client.finish()
    path, body = (await house.caller.heard("PropertiesChanged"))[0]
    assert path == "/Model/b" and body[0] == MODEL and body[2] == []
    assert isinstance(body[1], dict)
    assert body[1].keys() == {"InFlight", "LastUsed", "IdleSince"}
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
    await house.told()
    truth = {path: await house.caller.get_all(path, name) for path, name in paths.items()}
    for path, body in await house.caller.heard("PropertiesChanged"):
        if path in known:
            assert isinstance(body[1], dict)
            known[path] |= {key: value.value for key, value in body[1].items()}
    assert known == truth


async def test_the_manager_repeats_nothing(house: House) -> None:
    await house.stage.ask("b")
    await house.told()
    seen: list[object] = []
    for path, body in await house.caller.heard("PropertiesChanged"):
        if path == "/Manager":
            assert isinstance(body[1], dict)
            seen += [("ActiveModels", v.value) for k, v in body[1].items() if k == "ActiveModels"]
    assert seen == [("ActiveModels", ["b"])]


async def test_no_value_is_told_twice(house: House) -> None:
    """Not even where a model has the name of another object's path."""
    house.stage.reload(a_model(QWEN), a_model("b"), a_model("/Manager"))
    await house.told()
    paths = {"/Manager": MANAGER, PATH: MODEL, "/Model/b": MODEL, "/Model/_2fManager": MODEL}
    known = {path: await house.caller.get_all(path, name) for path, name in paths.items()}
    earlier = len(await house.caller.heard("PropertiesChanged"))
    for name in ("/Manager", "b", QWEN):
        await house.stage.ask(name)
        await house.told()
    for path, body in (await house.caller.heard("PropertiesChanged"))[earlier:]:
        assert isinstance(body[1], dict)
        for key, value in body[1].items() if path in known else ():
            assert known[path][key] != value.value, (path, key)
            known[path][key] = value.value


async def test_failures_that_are_forgiven_are_told(house: House) -> None:
    house.stage.switcher.model("b").failures = 1
    house.control.model_changed("b")
    await house.told()
    job = house.stage.switcher.switch("b")
    house.stage.switcher.jobs.cancel(job.number)
    await house.stage.result(job)
    await house.told()
    assert house.changes("/Model/b", "Failures") == [1, 0]
    assert await house.caller.get("/Model/b", MODEL, "Failures") == 0


async def test_a_pinned_model_says_so_until_it_is_unpinned(house: House) -> None:
    assert await house.caller.call("/Manager", "Pin", "qwen") is None
    assert await house.caller.get(PATH, MODEL, "Pinned") is True
    await house.told()
    await house.caller.call("/Manager", "Unpin", "qwen")
    assert await house.caller.get(PATH, MODEL, "Pinned") is False
    await house.told()
    assert house.changes(PATH, "Pinned") == [True, False]


async def test_what_was_learnt_is_told_and_a_job_expects_it(house: House) -> None:
    await house.stage.ask("b")
    costs = await house.caller.get("/Model/b", MODEL, "Costs")
    assert isinstance(costs, dict) and costs.keys() == {"cold"}
    await house.stage.result(house.stage.switcher.stop("b"))
    gate = house.stage.units.hold("start", "b")
    job = await house.caller.call("/Manager", "Switch", "b")
    assert await house.caller.get(str(job), JOB, "ExpectedSeconds") == costs["cold"]
    gate.open()


@pytest.mark.parametrize("kind", ["Switch", "Preload", "Warmup"])
async def test_a_job_expects_that_another_one_leaves(house: House, kind: str) -> None:
    await house.stage.ask("b")
    book = house.stage.switcher._book
    for cost, seconds in ((Cost.COLD, 40.0), (Cost.OUT, 3.0)):
        book.learn(QWEN, cost, seconds)
        book.learn("b", cost, 5 * seconds)
    gate = house.stage.units.hold("stop", "b")
    job = await house.caller.call("/Manager", kind, QWEN)
    warmup = 3.0 * (kind == "Warmup")
    expected = await house.caller.get(str(job), JOB, "ExpectedSeconds")
    assert expected == 40.0 + 15.0 + warmup
    gate.open()


@pytest.mark.parametrize(("host", "expected"), [(100, 2.0), (5, 2.0 + 15.0)])
async def test_a_job_expects_no_leaving_that_is_behind_its_coming(
    house: House, host: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The image of b takes 3 bytes of the host, half of which it may have.
    monkeypatch.setattr(memory, "available", lambda: host)
    await house.stage.ask("b")
    await house.stage.ask(QWEN)
    await house.stage.until_state("b", State.CHECKPOINTED)
    house.stage.switcher._book.learn("b", Cost.RESTORE, 2.0)
    house.stage.switcher._book.learn(QWEN, Cost.OUT, 15.0)
    gate = house.stage.units.hold("stop", QWEN)
    starting = house.stage.units.hold("start", "b")
    job = await house.caller.call("/Manager", "Switch", "b")
    assert await house.caller.get(str(job), JOB, "ExpectedSeconds") == expected
    gate.open()
    starting.open()


async def test_a_model_that_was_parked_says_so(house: House) -> None:
    await house.stage.ask("b")
    await house.stage.result(house.stage.switcher.park("b"))
    await house.told()
    await house.stage.ask("b")
    assert await house.caller.get("/Model/b", MODEL, "ActivatedBy") == "resume"
    assert await house.caller.get("/Model/b", MODEL, "ActivationSeconds") == 0.25
    await house.told()
    assert house.changes("/Model/b", "ActivatedBy")[-1] == "resume"


async def test_a_model_that_is_out_says_how_it_came_last(house: House) -> None:
    await house.stage.ask("b")
    await house.stage.result(house.stage.switcher.stop("b"))
    await house.told()
    found = await house.caller.get_all("/Model/b", MODEL)
    assert (found["State"], found["ActivatedBy"], found["ActivationSeconds"]) == ("cold", "", 0.0)
    assert (found["LastActivation"], found["LastActivationSeconds"]) == ("cold", 1.5)
    assert house.changes("/Model/b", "LastActivation") == ["cold"]


async def test_progress_is_told_while_time_goes_by(house: House) -> None:
    house.stage.switcher._book.learn("b", Cost.COLD, 1.0)
    gate = house.stage.units.hold("start", "b")
    await house.caller.call("/Manager", "Switch", "b")
    while len(told := house.changes("/Job/1", "Progress")) < 3:
        await house.caller.heard("PropertiesChanged", len(house.caller.signals) + 1)
    assert 0 < told[0] < told[-1] < 100 and sorted(set(told)) == told
    gate.open()


async def test_a_server_that_ended_by_itself_is_counted(house: House) -> None:
    await house.stage.ask("b")
    house.stage.units.die("b")
    await house.stage.ask("b")
    assert await house.caller.get("/Model/b", MODEL, "Restarts") == 1
    await house.stage.result(house.stage.switcher.stop("b"))
    assert await house.caller.get("/Model/b", MODEL, "Restarts") == 1


async def test_gpus_are_what_was_measured(house: House) -> None:
    foreign = Holder(7, "Xorg", None, 1 << 30)
    ours = Holder(8, "vllm", "b", 20 << 30)
    card = GpuMemory(0, "H100", 80 << 30, 21 << 30, (foreign, ours))
    house.gpus._reading = Reading(1.0, (card,))
    house.control.gpus_changed()
    path, body = (await house.caller.heard("PropertiesChanged"))[0]
    row = [0, "H100", 80 << 30, 21 << 30, 1 << 30]
    assert path == "/Manager" and body[1] == {"GPUs": Variant("a(usttt)", [row])}
    assert await house.caller.get("/Manager", MANAGER, "GPUs") == [row]


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
        second = Control(stage.switcher, Gpus(), house.control._manager._reload)
        own = Bus()
        await own.connect()
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
    house.own = Bus()
    await house.own.connect()
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
    ("/Manager", MANAGER, "Switch", ("b",), "org.llmux.switch"),
    ("/Manager", MANAGER, "Preload", ("b",), "org.llmux.switch"),
    ("/Manager", MANAGER, "Pin", ("b",), "org.llmux.manage"),
    ("/Manager", MANAGER, "Unpin", ("b",), "org.llmux.manage"),
    ("/Manager", MANAGER, "Checkpoint", ("b",), "org.llmux.manage"),
    ("/Manager", MANAGER, "Park", ("b",), "org.llmux.manage"),
    ("/Manager", MANAGER, "Warmup", ("b",), "org.llmux.manage"),
    ("/Manager", MANAGER, "Tune", ("b",), "org.llmux.manage"),
    ("/Manager", MANAGER, "Stop", ("b",), "org.llmux.manage"),
    ("/Manager", MANAGER, "Reload", (), "org.llmux.reload"),
    ("/Job/1", JOB, "Cancel", (), "org.llmux.switch"),
    ("/Job/2", JOB, "Cancel", (), "org.llmux.manage"),
    ("/Job/3", JOB, "Cancel", (), "org.llmux.switch"),
    ("/Job/4", JOB, "Cancel", (), "org.llmux.manage"),
]
FORBIDDEN = [
    ("/Manager", "org.freedesktop.DBus.Properties", "Set", (MANAGER, "Version", "x")),
    ("/Manager", "org.llmux.Debug", "NotInventedYet", ()),
]


@pytest.fixture
async def four_jobs(house: House) -> House:
    """A switch is /Job/1, a warm-up /Job/2, a preload /Job/3, a tune /Job/4; none of them ends."""
    house.stage.units.hold("start", "b")
    house.stage.switcher.switch("b")
    house.stage.switcher.warmup(QWEN)
    house.stage.switcher.preload(QWEN)
    house.stage.switcher.tune(QWEN)
    return house


def test_every_method_is_on_one_side_or_the_other() -> None:
    from llmuxd.control.job import JobInterface
    from llmuxd.control.manager import ManagerInterface

    known = {row[2] for row in READS} | {row[2] for row in CHANGES}
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


@pytest.mark.parametrize(("path", "interface", "member", "arguments"), FORBIDDEN)
@pytest.mark.parametrize("destination", ["org.llmux", "its unique name"])
async def test_what_the_policy_does_not_name_is_stopped_by_the_bus(
    house: House,
    polkit: Polkit,
    path: str,
    interface: str,
    member: str,
    arguments: tuple[str, ...],
    destination: str,
) -> None:
    polkit.answer = YES
    assert house.own.unique_name is not None
    to = "org.llmux" if destination == "org.llmux" else house.own.unique_name
    stranger = await house.bus.connect(NOBODY)
    with pytest.raises(Refused, match="Rejected") as caught:
        await stranger.call(path, member, *arguments, interface=interface, destination=to)
    assert caught.value.name == STOPPED_BY_THE_BUS
    assert polkit.questions == []
    await stranger.close()


# Who may


def untouched(house: House) -> bool:
    """Nothing was changed by anybody but `four_jobs`."""
    numbers = [job.number for job in house.stage.switcher.jobs.all()]
    return numbers == [1, 2, 3, 4] and not house.reloads


async def a_refusal(
    house: House,
    path: str = "/Manager",
    interface: str = MANAGER,
    member: str = "Reload",
    arguments: tuple[str, ...] = (),
    flags: MessageFlag = MessageFlag.NONE,
) -> Refused:
    stranger = await house.bus.connect(NOBODY)
    with pytest.raises(Refused) as caught:
        await stranger.call(path, member, *arguments, interface=interface, flags=flags)
    await stranger.close()
    assert ".py" not in caught.value.text and "Traceback" not in caught.value.text
    return caught.value


@pytest.mark.parametrize(("path", "interface", "member", "arguments", "action"), CHANGES)
async def test_polkit_says_no(
    four_jobs: House, polkit: Polkit, path: str, interface: str, member: str,
    arguments: tuple[str, ...], action: str,
) -> None:  # fmt: skip
    error = await a_refusal(four_jobs, path, interface, member, arguments)
    assert error.name == DENIED and action in error.text
    assert [question.action for question in polkit.questions] == [action]
    assert untouched(four_jobs)


@pytest.mark.parametrize(("path", "interface", "member", "arguments", "action"), CHANGES)
async def test_no_polkit_no_change(
    four_jobs: House,
    path: str,
    interface: str,
    member: str,
    arguments: tuple[str, ...],
    action: str,
) -> None:
    error = await a_refusal(four_jobs, path, interface, member, arguments)
    assert error.name == DENIED and f"polkit cannot be asked for {action}" in error.text
    assert untouched(four_jobs)


@pytest.mark.parametrize(("path", "interface", "member", "arguments", "action"), CHANGES)
async def test_polkit_says_yes(
    four_jobs: House, polkit: Polkit, path: str, interface: str, member: str,
    arguments: tuple[str, ...], action: str,
) -> None:  # fmt: skip
    polkit.answer = YES
    stranger = await four_jobs.bus.connect(NOBODY)
    await stranger.call(path, member, *arguments, interface=interface)
    (asked,) = polkit.questions
    assert (asked.kind, asked.name) == ("system-bus-name", str(stranger.bus.unique_name))
    assert (asked.action, asked.flags) == (action, 0)
    await stranger.close()


@pytest.mark.parametrize(("path", "interface", "member", "arguments", "action"), CHANGES)
async def test_root_needs_no_polkit(
    four_jobs: House, polkit: Polkit, path: str, interface: str, member: str,
    arguments: tuple[str, ...], action: str,
) -> None:  # fmt: skip
    await four_jobs.caller.call(path, member, *arguments, interface=interface)
    assert polkit.questions == []


async def test_each_call_is_asked_for_anew(house: House, polkit: Polkit) -> None:
    stranger = await house.bus.connect(NOBODY)
    polkit.answer = YES
    await stranger.call("/Manager", "Reload")
    polkit.answer = NO
    with pytest.raises(Refused):
        await stranger.call("/Manager", "Reload")
    assert len(polkit.questions) == len({asked.ticket for asked in polkit.questions}) == 2
    assert house.reloads == [1]
    await stranger.close()


async def test_calls_of_many_do_not_mix(house: House, polkit: Polkit) -> None:
    """Root's call and two strangers' are under way at once; each has its own caller's rights."""
    polkit.hangs = True
    one, two = await house.bus.connect(NOBODY), await house.bus.connect(NOBODY)
    calls = [asyncio.create_task(each.call("/Manager", "Reload")) for each in (one, two)]
    while len(polkit.questions) < 2:
        polkit.asked.clear()
        await polkit.asked.wait()
    await house.caller.call("/Manager", "Reload")
    assert house.reloads == [1]
    names = {one.bus.unique_name, two.bus.unique_name}
    assert {asked.name for asked in polkit.questions} == names
    await polkit.close()  # the bus answers for it
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, Refused) and each.name == DENIED for each in done)
    assert house.reloads == [1]
    await one.close()
    await two.close()


@pytest.mark.parametrize("flags", [MessageFlag.NONE, INTERACTIVE])
async def test_challenge_is_told_as_such(house: House, polkit: Polkit, flags: MessageFlag) -> None:
    polkit.answer = CHALLENGE
    error = await a_refusal(house, flags=flags)
    assert error.name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
    assert [asked.flags for asked in polkit.questions] == [1 if flags else 0]
    assert house.reloads == []


@pytest.mark.parametrize("flags", [MessageFlag.NONE, INTERACTIVE])
async def test_polkit_hangs(
    house: House, polkit: Polkit, monkeypatch: pytest.MonkeyPatch, flags: MessageFlag
) -> None:
    short, long = (60, 0.1) if flags else (0.1, 60)
    monkeypatch.setattr(authority, "PATIENCE_WITH_PEOPLE", long)
    if not flags:
        monkeypatch.setattr(authority, "PATIENCE", short)
    polkit.hangs = True
    error = await a_refusal(house, flags=flags)
    assert error.name == DENIED and "in time" in error.text
    while not polkit.cancelled:
        polkit.asked.clear()
        await polkit.asked.wait()
    assert polkit.cancelled == [polkit.questions[0].ticket]
    assert house.reloads == []


async def test_reading_goes_on_while_polkit_hangs(house: House, polkit: Polkit) -> None:
    polkit.hangs = True
    stranger = await house.bus.connect(NOBODY)
    call = asyncio.create_task(stranger.call("/Manager", "Reload"))
    await polkit.asked.wait()
    assert await stranger.get("/Model/b", MODEL, "State") == "cold"
    await polkit.close()
    with pytest.raises(Refused):
        await call
    await stranger.close()


async def test_polkit_that_complains_or_raves_is_no_yes(
    house: House, polkit: Polkit, caplog: pytest.LogCaptureFixture
) -> None:
    polkit.answer = YES
    polkit.error = ("org.freedesktop.PolicyKit1.Error.Failed", "/secret is not registered")
    error = await a_refusal(house)
    assert error.name == DENIED and "secret" not in error.text
    assert "/secret is not registered" in caplog.text
    polkit.error, polkit.signature = None, "u"
    error = await a_refusal(house)
    assert error.name == DENIED
    assert house.reloads == []


async def test_nobody_but_polkit_can_answer_for_it(house: House, polkit: Polkit) -> None:
    """Others may send what looks like the answer; the bus does not carry it."""
    polkit.hangs = True
    stranger, forger = await house.bus.connect(NOBODY), await house.bus.connect(NOBODY)
    call = asyncio.create_task(stranger.call("/Manager", "Reload"))
    await polkit.asked.wait()
    for serial in range(1, house.own._serial + 5):
        forger.bus.send(
            Message(
                destination=str(house.own.unique_name), message_type=MessageType.METHOD_RETURN,
                reply_serial=serial, signature="(bba{ss})", body=[[True, False, {}]],
            )
        )  # fmt: skip
    await forger.get("/Manager", MANAGER, "Version")
    assert not call.done()
    await polkit.close()
    with pytest.raises(Refused):
        await call
    assert house.reloads == []
    await stranger.close()
    await forger.close()


async def test_caller_that_left_changes_nothing(house: House, polkit: Polkit) -> None:
    """By then its name is nobody's, and polkit says no for nobody."""
    polkit.hangs = True
    stranger = await house.bus.connect(NOBODY)
    call = asyncio.create_task(stranger.call("/Manager", "Reload"))
    await polkit.asked.wait()
    await stranger.close()
    await polkit.close()
    await asyncio.gather(call, return_exceptions=True)
    await house.caller.get("/Manager", MANAGER, "Version")
    assert house.reloads == []


async def test_mistakes_are_told_to_those_only_who_may(house: House, polkit: Polkit) -> None:
    house.reload_error.append(ConfigInvalid("llmux.yaml:3:5: unknown key 'x'"))
    error = await a_refusal(house)
    assert error.name == DENIED and "yaml" not in error.text
    polkit.answer = YES
    error = await a_refusal(house)
    assert error.name == "org.llmux.Error.ConfigInvalid"


async def test_lost_connection_ends_the_question(house: House, polkit: Polkit) -> None:
    polkit.hangs = True
    stranger = await house.bus.connect(NOBODY)
    call = asyncio.create_task(stranger.call("/Manager", "Reload"))
    await polkit.asked.wait()
    house.control.detach()
    await leave(house.own)
    with pytest.raises(Refused, match="NoReply"):
        await call
    await stranger.close()
    house.own = Bus()
    await house.own.connect()
    await house.control.attach(house.own)
    assert house.reloads == []


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
