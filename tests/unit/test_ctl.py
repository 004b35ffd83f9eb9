# SPDX-License-Identifier: MIT
"""What llmuxctl draws, and what it makes of signals, without a bus."""

import argparse
import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from dbus_next import Message, MessageType

from llmuxd.ctl import __main__ as llmuxctl
from llmuxd.ctl import models, table, terminal, top, work
from llmuxd.ctl.mirror import JOB, MANAGER, MODEL, Mirror
from llmuxd.errors import NoSuchModel, NotSupported

GPU = [0, "H100", 80 << 30, 60 << 30, 1 << 30]
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECTS = "org.freedesktop.DBus.ObjectManager"


def variants(**values: Any) -> dict[str, Any]:
    """As they come from the bus: something with a `value`."""
    return {key: SimpleNamespace(value=value) for key, value in values.items()}


def a_model(name: str, **values: Any) -> dict[str, Any]:
    base = {
        "Name": name, "State": "serving", "GPUs": [0], "Pinned": False, "InFlight": 2, "Queued": 0,
        "IdleSince": 0.0, "LastActivation": "restore", "LastActivationSeconds": 2.5,
        "CheckpointValid": True, "CheckpointSize": 3 << 30,
    }  # fmt: skip
    return variants(**(base | values))


def a_signal(path: str, interface: str, member: str, *body: object) -> Message:
    # Not marshalled, so its signature does not matter.
    return Message(
        path=path, interface=interface, member=member, message_type=MessageType.SIGNAL,
        signature="", body=list(body),
    )  # fmt: skip


@pytest.fixture
def mirror() -> Mirror:
    manager = variants(Version="1", ActiveModels=["b"], QueueLength=4, GPUs=[GPU])
    return Mirror({
        "/Manager": {MANAGER: manager}, "/Model/b": {MODEL: a_model("b")},
        "/Model/c": {MODEL: a_model("c", State="parked", Pinned=True, LastActivation="")},
    })  # fmt: skip


def test_the_screen_has_gpus_models_and_jobs(mirror: Mirror) -> None:
    job = variants(Kind="switch", Model="c", Phase="waiting", Progress=40, Started=0.0)
    assert mirror.apply(a_signal("/", OBJECTS, "InterfacesAdded", "/Job/1", {JOB: job}))
    head, _, gpu, _, _, b, c, _, _, running = top.screen(mirror, "here", 100, 30)
    assert "llmuxd 1 on here" in head and "2 models, 1 serving, 4 requests wait" in head
    assert gpu == "GPU 0  [###############     ]  60.0G of 80.0G, 1.0G of it not by models  H100"
    assert b.split() == ["b", "serving", "GPU", "0", "2", "0", "-", "restore", "2.50s", "3.0G"]
    assert c.split()[:3] == ["c", "parked", "memory"]
    assert running.split()[:3] == ["1", "switch", "c"] and "40 %" in running


def test_the_screen_is_no_larger_than_the_terminal(mirror: Mirror) -> None:
    shown = top.screen(mirror, "here", 20, 4)
    assert len(shown) == 3
    plain = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in shown]
    assert max(map(len, plain)) <= 20


def test_signals_keep_the_mirror_true(mirror: Mirror) -> None:
    changed = variants(State="draining", InFlight=1)
    assert mirror.apply(a_signal("/Model/b", PROPERTIES, "PropertiesChanged", MODEL, changed, []))
    assert [each["State"] for each in mirror.models()] == ["draining", "parked"]
    assert mirror.models()[0]["Name"] == "b"
    assert mirror.apply(a_signal("/", OBJECTS, "InterfacesRemoved", "/Model/c", [MODEL]))
    assert [each["Name"] for each in mirror.models()] == ["b"]
    gone = a_signal("/Model/c", PROPERTIES, "PropertiesChanged", MODEL, changed, [])
    assert not mirror.apply(gone)
    assert not mirror.apply(a_signal("/Manager", MANAGER, "JobNew", 1, "/Job/1", "b"))


def test_one_that_is_out_has_its_last_switch_too() -> None:
    out = {key: each.value for key, each in a_model("b", State="checkpointed").items()}
    assert models.lines([out], colour=False)[1].split() == [
        "b", "checkpointed", "disk", "2", "0", "-", "restore", "2.50s", "3.0G",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["yaml", "dbus_next.aio"])
def test_a_package_that_python_lacks_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacks(command: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("sys.argv", ["llmuxctl", "check"])
    monkeypatch.setattr(llmuxctl, "function", lacks)
    assert llmuxctl.main() == 1
    assert capsys.readouterr().err.startswith(f"llmuxctl: Python has no {name}: install it")


def test_a_module_of_its_own_that_is_not_there_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(command: str) -> None:
        raise ModuleNotFoundError(name="llmuxd.ctl.nothing")

    monkeypatch.setattr("sys.argv", ["llmuxctl", "check"])
    monkeypatch.setattr(llmuxctl, "function", lacks)
    with pytest.raises(ModuleNotFoundError):
        llmuxctl.main()


def test_cells_are_cut_before_they_are_painted() -> None:
    def paint(column: int, cell: str) -> str:
        return terminal.paint(cell, terminal.Style.RED)

    lines = table.lines(("A", "B"), [("one", "two")], paint=paint, room=6)
    assert lines == ["A    B", "\x1b[31mone\x1b[0m  \x1b[31mt\x1b[0m"]


@pytest.mark.parametrize(
    ("share", "shown"), [(0.0, "[    ]"), (0.5, "[##  ]"), (1.0, "[####]"), (7.0, "[####]")]
)
def test_a_bar_is_filled_to_its_share(share: float, shown: str) -> None:
    assert table.bar(share, 4) == shown


class Tuned:
    """A daemon that has a and b, of which a is tuned; it does whatever it is told at once."""

    def __init__(self, *_: object) -> None:
        self.told: list[tuple[str, str]] = []

    async def __aenter__(self) -> "Tuned":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def listen(self) -> None:
        pass

    async def manager(self, method: str, *names: str) -> Any:
        if method == "ListModels":
            return [["a"], ["b"]]
        if method != "GetModel":
            self.told.append((method, names[0]))
        return "/Job/1"

    async def model(self, name: str) -> dict[str, Any]:
        why_not = "" if name == "a" else "it was not tuned"
        return {"TuningWhyNot": why_not, "Tuning": [], "LettingGo": []}

    def ended(self, job: str) -> tuple[str, str]:
        return "done", "done"


@pytest.mark.parametrize(
    ("names", "told"),
    [([], [("Warmup", "a"), ("Tune", "b")]), (["a"], [("Tune", "a")])],
)
async def test_what_is_tuned_is_tuned_again_only_where_it_is_named(
    names: list[str], told: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Tuned()
    monkeypatch.setattr(work, "Daemon", lambda host: daemon)
    arguments = argparse.Namespace(command="warmup", tune=True, model=names, host=None, json=False)
    assert await work.run(arguments) == 0
    assert daemon.told == told


@pytest.mark.parametrize(("result", "status"), [("failed", 1), ("canceled", 130)])
async def test_one_that_came_to_no_end_tells_what_was_measured(
    result: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = Tuned()
    rows = [["image_sleep", "2", 3.0, 4.25, 3 << 30, 3, ""]]
    properties = {"TuningWhyNot": "it was not tuned", "Tuning": rows, "LettingGo": []}
    monkeypatch.setattr(daemon, "ended", lambda _: (result, "failed: it was stopped"))
    monkeypatch.setattr(daemon, "model", lambda _: asyncio.sleep(0, properties))
    monkeypatch.setattr(work, "Daemon", lambda host: daemon)
    arguments = argparse.Namespace(command="warmup", tune=True, model=["b"], host=None, json=False)
    assert await work.run(arguments) == status
    told = capsys.readouterr()
    assert f"b: tune {result} after" in told.err
    assert ("it was stopped" in told.err) is (result == "failed")
    assert [line.split()[:4] for line in told.out.splitlines()] == [
        ["KEY", "VALUE", "OUT", "BACK"], ["image_sleep", "2", "3.00", "s"],
    ]  # fmt: skip
    arguments.json = True
    assert await work.run(arguments) == status
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["result"], len(found["measured"])) == (result, 1)


async def test_one_whose_model_is_gone_tells_no_more_than_that(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def gone(name: str) -> dict[str, Any]:
        raise NoSuchModel(f"there is no model {name!r}")

    daemon = Tuned()
    monkeypatch.setattr(daemon, "ended", lambda _: ("failed", "failed: it was removed"))
    monkeypatch.setattr(daemon, "model", gone)
    monkeypatch.setattr(work, "Daemon", lambda host: daemon)
    arguments = argparse.Namespace(command="warmup", tune=True, model=["b"], host=None, json=False)
    assert await work.run(arguments) == 1
    told = capsys.readouterr()
    assert "it was removed" in told.err and told.out == ""


async def test_one_that_is_refused_keeps_no_other_from_its_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refusing(Tuned):
        async def manager(self, method: str, *names: str) -> Any:
            if (method, *names) == ("Warmup", "a"):
                raise NotSupported("'a' cannot be warmed up")
            return await super().manager(method, *names)

    daemon = Refusing()
    monkeypatch.setattr(work, "Daemon", lambda host: daemon)
    arguments = argparse.Namespace(command="warmup", tune=True, model=[], host=None, json=False)
    assert await work.run(arguments) == 1
    assert daemon.told == [("Tune", "b")]
    assert "a: warmup failed after 0.00 s: 'a' cannot be warmed up" in capsys.readouterr().err
