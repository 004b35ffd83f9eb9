# SPDX-License-Identifier: MIT
"""A model that another unit serves: the orders to systemd, and what is left of it."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmuxd import files, names
from llmuxd.config import parse
from llmuxd.meter import holders
from llmuxd.model import __main__ as helper
from llmuxd.model import cgroup, engine, mirrored, mirroring, resident
from llmuxd.model.activation import Activation, stopping_mark
from llmuxd.model.attending import DiedAlone
from llmuxd.model.lifecycle import Lifecycle
from llmuxd.model.mirroring import Mirror
from llmuxd.model.process import CommandFailed
from llmuxd.model.starting import StartFailed

TEXT = "models: {a: {engine: unit, unit: ollama.service, port: 11434, devices: []}}\n"
MODEL = parse(TEXT, Path("llmux.yaml")).models["a"]


class Systemctl:
    """Says what it was told; `fails` is the verb that it refuses."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.fails = ""
        self.main = os.getpid()

    def run(self, argv: Sequence[str], timeout: float) -> str:
        assert argv[0] == "systemctl" and argv[-1] == "ollama.service"
        self.told.append(argv[1])
        if argv[1] == self.fails:
            raise CommandFailed(argv, 1, "it does not want to")
        return str(self.main) if argv[1] == "show" else ""


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(resident, "listen", lambda model: None)
    stand_in = Systemctl()
    monkeypatch.setenv("MAINPID", "1")
    monkeypatch.setattr(mirroring, "run", stand_in.run)
    monkeypatch.setattr(cgroup, "of_unit", lambda unit: Path("/cgroup", unit))
    monkeypatch.setattr(engine, "wait_healthy", lambda *_: None)
    return stand_in


def left() -> list[str]:
    kept = (".lock", ".in.json", ".out.json")
    return [each.name for each in files.runtime_root().iterdir() if not each.name.endswith(kept)]


def test_it_starts_the_unit_and_says_where_it_serves(systemctl: Systemctl) -> None:
    assert Mirror(MODEL).start() == os.getpid()
    assert systemctl.told == ["start", "show"]
    run = Activation.load("a")
    assert run is not None
    assert (run.port, run.unit, run.payload) == (11434, "ollama.service", "/cgroup/ollama.service")
    assert not run.checkpoint and not run.canary


def test_it_stops_the_unit_and_leaves_nothing(systemctl: Systemctl) -> None:
    Mirror(MODEL).start()
    systemctl.told.clear()
    Mirror(MODEL).stop()
    assert systemctl.told == ["stop"]
    Mirror(MODEL).clean_up()
    assert left() == []


def test_where_the_unit_ended_by_itself_it_says_so(
    systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mirror(MODEL).start()
    # systemd runs ExecStop= all the same, and knows of no main process any more.
    monkeypatch.delenv("MAINPID")
    Mirror(MODEL).stop()
    with pytest.raises(DiedAlone, match=r"ollama\.service ended by itself"):
        Mirror(MODEL).clean_up()
    assert systemctl.told[-1] == "stop" and left() == []


def test_what_cannot_be_stopped_is_told_and_forgotten(systemctl: Systemctl) -> None:
    Mirror(MODEL).start()
    stopping_mark("a").touch()
    systemctl.fails = "stop"
    with pytest.raises(CommandFailed):
        Mirror(MODEL).clean_up()
    assert left() == [f"{names.slug('a')}.mirror.json"]


def test_a_start_that_fails_says_why(systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl.main = 0
    with pytest.raises(StartFailed, match="no main process"):
        Mirror(MODEL).start()
    systemctl.fails = "start"
    with pytest.raises(StartFailed, match="does not want to"):
        Mirror(MODEL).start()

    def died(*_: object) -> None:
        raise engine.EngineDied("the container ended")

    systemctl.fails, systemctl.main = "", 1
    monkeypatch.setattr(engine, "wait_healthy", died)
    with pytest.raises(StartFailed, match=r"ollama\.service ended before it was healthy"):
        Mirror(MODEL).start()
    Mirror(MODEL).clean_up()
    assert systemctl.told[-1] == "stop" and left() == []


def test_who_stops_it_knows_which_unit_it_was_without_the_file(systemctl: Systemctl) -> None:
    bare = helper._model("a", None, "stop")
    assert isinstance(helper._attending(bare, None), Lifecycle)
    Mirror(MODEL).start()
    attending = helper._attending(bare, None)
    assert isinstance(attending, Mirror)
    attending.stop()
    attending.clean_up()
    assert systemctl.told == ["start", "show", "stop", "stop"] and left() == []


def test_a_model_that_became_a_container_is_none_any_more(systemctl: Systemctl) -> None:
    mirrored.note("a", "ollama.service")
    again = parse("models: {a: {image: i}}\n", Path("llmux.yaml")).models["a"]
    assert isinstance(helper._attending(again, None), Lifecycle)


def test_its_memory_is_the_models(
    systemctl: Systemctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "PROC", tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("0::/system.slice/ollama.service\n")
    assert holders.model(7) is None
    mirrored.note("a", "ollama.service")
    assert holders.model(7) == "a"
    mirrored.forget("a")
    assert holders.model(7) is None
