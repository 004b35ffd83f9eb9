# SPDX-License-Identifier: MIT
from dataclasses import replace
from pathlib import Path

import pytest

from llmuxd import files, names
from llmuxd.config import ModelConfig
from llmuxd.model import cgroup, sweeping
from llmuxd.model.activation import is_moved, note_place, one_at_a_time
from llmuxd.model.checkpoint import Checkpoint
from llmuxd.model.container import Container
from llmuxd.model.process import CommandFailed

from .fake_units import a_checkpoint, a_model, an_activation

A, B = a_model("a"), a_model("b")


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The containers that were removed; of no model the unit runs."""
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    monkeypatch.setattr(Container, "remove", lambda container: names.append(container.name))
    monkeypatch.setattr(cgroup, "of_unit", lambda unit: None)
    return names


def has(name: str) -> bool:
    record = Checkpoint.load(name)
    return record is not None and not record.invalid


def test_what_left_the_configuration_or_was_redefined_goes(removed: list[str]) -> None:
    for model in (A, B, a_model("gone")):
        a_checkpoint(model).save()
    sweeping.sweep({"a": A, "b": replace(B, args=("--other",))})
    assert [name[:7] for name in removed] == ["llmux-b", "llmux-g"]
    assert has("a") and not has("b") and Checkpoint.load("gone") is None
    record = Checkpoint.load("b")
    assert record is not None and "definition" in record.invalid
    sweeping.sweep({"a": A, "b": B})
    assert len(removed) == 2


@pytest.mark.parametrize("form", ["1", "99", ""])
def test_with_an_upgrade_not_all_go_at_once(removed: list[str], form: str) -> None:
    """Neither after going back; one that left the configuration goes all the same."""
    for model in (A, a_model("gone")):
        record = a_checkpoint(model)
        of_other = replace(record.identity, definition="other", container_form=form)
        replace(record, identity=of_other).save()
    sweeping.sweep({"a": A})
    assert [name[:7] for name in removed] == ["llmux-g"]
    assert has("a") and Checkpoint.load("gone") is None


def test_one_that_runs_keeps_it(removed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    a_checkpoint(A).save()
    with monkeypatch.context() as patched:
        patched.setattr(cgroup, "of_unit", lambda unit: Path("/sys/fs/cgroup/x"))
        sweeping.sweep({})
    an_activation("a", 21000).save()
    sweeping.sweep({})
    assert has("a") and removed == []


def test_caches_go_with_their_model(removed: list[str]) -> None:
    """Not those of one that runs, or starts; where one is a link, what it leads to is kept."""
    for name in ("a", "gone", "up", "starting"):
        (files.cache_root() / names.slug(name) / ".cache").mkdir(parents=True)
    elsewhere = files.state_root() / "big disk"
    elsewhere.mkdir(parents=True)
    (files.cache_root() / names.slug("linked")).symlink_to(elsewhere)
    an_activation("up", 21000).save()
    note_place("starting", [0])
    sweeping.sweep({"a": A})
    left = {path.name for path in files.cache_root().iterdir()}
    assert left == {names.slug(name) for name in ("a", "up", "starting")}
    assert elsewhere.is_dir()


def test_one_that_is_on_its_way_keeps_it(removed: list[str]) -> None:
    a_checkpoint(A).save()
    with one_at_a_time("a"):
        sweeping.sweep({})
    assert has("a") and removed == []
    sweeping.sweep({"b": ModelConfig("b", "i")})
    assert len(removed) == 1


@pytest.fixture
def networks(removed: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The networks that were removed, of those of the models a, b and gone; only b has more."""
    names: list[str] = []
    monkeypatch.setattr(sweeping, "network_owners", lambda: ["a", "b", "gone"])
    monkeypatch.setattr(Container, "remove_network", lambda it: names.append(it.name))
    monkeypatch.setattr(
        Container, "inspect", lambda it: it if it.name.startswith("llmux-b") else None
    )
    return names


def test_a_network_goes_that_has_no_container(networks: list[str]) -> None:
    sweeping.sweep_networks()
    assert [name[:7] for name in networks] == ["llmux-a", "llmux-g"]


def test_a_container_is_looked_for_while_room_may_be_made_of_its_image(
    networks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []

    def inspect(container: Container) -> Container:
        held.append(any(map(is_moved, ("a", "b", "gone"))))
        return container

    monkeypatch.setattr(Container, "inspect", inspect)
    sweeping.sweep_networks()
    assert held == [False] * 3 and networks == []


def test_not_that_of_a_start(networks: list[str]) -> None:
    an_activation("gone", 21000).save()
    with one_at_a_time("a"):
        sweeping.sweep_networks()
    assert networks == []


def test_where_podman_does_not_work_nothing_is_swept(
    networks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[str]:
        raise CommandFailed(["podman"], 125, "no")

    monkeypatch.setattr(sweeping, "network_owners", fail)
    sweeping.sweep_networks()
    assert networks == []
