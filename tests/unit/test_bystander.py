# SPDX-License-Identifier: MIT
"""A model is ended under an older release than the one that wrote its records."""

import json
from pathlib import Path

import pytest

from llmuxd import __version__, files, names, stored
from llmuxd.config import ModelConfig
from llmuxd.model import cgroup
from llmuxd.model.activation import Leave, order_leave
from llmuxd.model.attending import DiedAlone
from llmuxd.model.bystander import Bystander
from llmuxd.model.container import Container, Facts
from llmuxd.model.lifecycle import Lifecycle

from .fake_units import an_activation


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was done to the container, which runs at first; of the model there is a newer record."""
    done: list[str] = []
    files.write_json(_record(), {"what": "nobody knows yet"})
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    an_activation("a", 21000).save()

    def look(container: Container) -> Facts:
        return Facts("c1", "i1", not done, 1, 2, tmp_path)

    monkeypatch.setattr(cgroup, "kill_others", lambda: None)
    monkeypatch.setattr(Container, "inspect", look)
    for name in ("halt", "kill", "stop", "remove", "checkpoint"):
        monkeypatch.setattr(Container, name, lambda *_, name=name: done.append(name))
    return done


def _record() -> Path:
    return files.state_root() / "checkpoints" / f"{names.slug('a')}.json"


@pytest.mark.parametrize("order", list(Leave))
def test_its_server_is_ended_and_all_that_is_kept_stays(did: list[str], order: Leave) -> None:
    order_leave("a", order)
    model = ModelConfig("a", "")
    Bystander(model).stop()
    Bystander(model).clean_up()
    assert did == ["halt"]
    assert json.loads(_record().read_text()) == {"what": "nobody knows yet"}


def test_so_it_does_where_the_server_died(did: list[str]) -> None:
    with pytest.raises(DiedAlone):
        Bystander(ModelConfig("a", "")).clean_up()
    assert did == ["halt"]
    assert _record().exists()


def test_a_helper_that_stayed_from_before_leaves_a_stop_to_another(did: list[str]) -> None:
    order_leave("a", Leave.STOP)
    stayed = Lifecycle(ModelConfig("a", ""))
    assert stayed._answer("stop 0.0.1").startswith("failed: ")
    newer = files.state_root() / "form.json"
    files.write_json(newer, {"form": stored.FORM + 1})
    assert stayed._answer(f"stop {__version__}").startswith("failed: ")
    assert did == []
    newer.unlink()
    files.write_json(newer, {"form": stored.FORM})
    assert stayed._answer(f"stop {__version__}") == "done"
    assert did == ["stop"]
