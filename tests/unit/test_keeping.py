# SPDX-License-Identifier: MIT
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmuxd import files
from llmuxd.config import parse
from llmuxd.model import cgroup, checkpoint, keeping
from llmuxd.model.activation import one_at_a_time
from llmuxd.model.checkpoint import Checkpoint, mark_used
from llmuxd.model.container import Container
from llmuxd.model.keeping import Limits, NoRoom, Room

from .fake_units import a_checkpoint, a_model, an_activation

GB = 10**9
OTHERS = ("a", "b", "c")  # in the order of their last use


@pytest.fixture(autouse=True)
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The containers that were removed. Three models have images of 2 GB each; none runs."""
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    monkeypatch.setattr(Container, "remove", lambda container: names.append(container.name[6:7]))
    monkeypatch.setattr(cgroup, "of_unit", lambda unit: None)
    disk = SimpleNamespace(total=100 * GB, free=50 * GB)
    monkeypatch.setattr(keeping, "shutil", SimpleNamespace(disk_usage=lambda _: disk))
    for age, name in enumerate(OTHERS):
        replace(a_checkpoint(a_model(name)), size=2 * GB).save()
        os.utime(checkpoint._path(name), (age, age))
    return names


def a_room(limits: Limits, *needed: str) -> Room:
    return Room("new", files.state_root() / "images" / "new", limits, needed)


def why_not(name: str) -> str:
    record = Checkpoint.load(name)
    assert record is not None
    return record.invalid


def test_the_least_lately_used_makes_room_and_says_for_what(removed: list[str]) -> None:
    a_room(Limits(number=3)).make(2 * GB)
    assert removed == ["a"]
    assert why_not("a") == (
        "it made room for another: 3 other images are kept, and checkpoint_limit is 3"
    )
    assert not why_not("b")


def test_as_many_go_as_are_in_the_way(removed: list[str]) -> None:
    a_room(Limits(space=5 * GB)).make(3 * GB)
    assert removed == ["a", "b"]
    assert "the image takes 3.0 GB, other images 6.0 GB, and checkpoint_space is 5.0 GB" in why_not(
        "a"
    )


def test_where_there_is_room_nothing_goes(removed: list[str]) -> None:
    for limits in (Limits(), Limits(4, 8 * GB)):
        a_room(limits).make(2 * GB)
        a_room(limits).hold(2 * GB)
    assert removed == []


def test_what_only_another_release_can_restore_goes_first(removed: list[str]) -> None:
    record = Checkpoint.load("c")
    assert record is not None
    replace(record, identity=replace(record.identity, container_form="1")).save()
    # Nor does a request that waits for it keep it: that is going to be a cold start.
    a_room(Limits(number=3), "c").make(2 * GB)
    assert removed == ["c"]
    a_room(Limits(number=2), "b").make(2 * GB)
    assert removed == ["c", "a"]


def test_an_image_that_is_restored_is_in_use(removed: list[str]) -> None:
    mark_used("a")
    a_room(Limits(number=3)).make(0)
    assert removed == ["b"]


def test_what_runs_moves_or_is_waited_for_keeps_its_own(removed: list[str]) -> None:
    an_activation("a", 21000).save()
    with one_at_a_time("b"):
        a_room(Limits(number=3), "new").make(0)
        assert removed == ["c"]
        with pytest.raises(NoRoom, match="checkpoint_limit is 2"):
            a_room(Limits(number=2)).make(0)
    with pytest.raises(NoRoom, match="checkpoint_limit is 2"):
        a_room(Limits(number=2), "b").make(0)
    assert removed == ["c"]


def test_for_one_that_fits_nowhere_nobody_goes(removed: list[str]) -> None:
    with pytest.raises(NoRoom, match="takes 7.0 GB, other images 0.0 GB"):
        a_room(Limits(space=6 * GB)).hold(7 * GB)
    with pytest.raises(NoRoom, match="has room for 50.0 GB, and the last image took 60.0 GB"):
        a_room(Limits()).make(60 * GB)
    assert removed == []


def test_by_default_images_take_a_share_of_their_disk(
    removed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_room(Limits()).hold(74 * GB)
    assert removed == []
    a_room(Limits()).hold(76 * GB)
    assert removed == ["a"]
    # What lies on another disk is not in the way.
    monkeypatch.setattr(keeping, "_device", lambda directory: hash(directory))
    a_room(Limits()).hold(80 * GB)
    assert removed == ["a"]


def test_a_full_disk_is_made_room_on(removed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(directory: Path) -> SimpleNamespace:
        return SimpleNamespace(total=100 * GB, free=(1 + 2 * len(removed)) * GB)

    monkeypatch.setattr(keeping, "shutil", SimpleNamespace(disk_usage=usage))
    a_room(Limits()).make(2 * GB)
    assert removed == ["a"]


def test_the_loss_of_a_live_state_is_told(caplog: pytest.LogCaptureFixture) -> None:
    record = Checkpoint.load("a")
    assert record is not None
    replace(record, live=True).save()
    os.utime(checkpoint._path("a"), (0, 0))
    a_room(Limits(number=2)).make(0)
    told = [each.getMessage() for each in caplog.records if "removed the check" in each.message]
    assert ["what its server had come to is lost" in each for each in told] == [True, False]


def test_the_limits_are_those_of_the_file() -> None:
    text = "checkpoint_limit: 3\ncheckpoint_space: 20GB\nmodels: {a: {image: i}}\n"
    assert Limits.of(parse(text, Path("llmux.yaml"))) == Limits(3, 20 * GB)
    text = "checkpoint_limit: null\ncheckpoint_space: null\nmodels: {a: {image: i}}\n"
    assert Limits.of(parse(text, Path("llmux.yaml"))) == Limits()
