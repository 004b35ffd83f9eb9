# SPDX-License-Identifier: MIT
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmuxd import names
from llmuxd.model import place

from .fake_units import a_checkpoint, a_model

MINE = names.container("a")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """podman's, of a container that was not dumped yet; what is below tmp_path is safe."""
    # /tmp is everybody's.
    unsafe = place._is_open
    monkeypatch.setattr(
        place, "_is_open", lambda path: path.is_relative_to(tmp_path) and unsafe(path)
    )
    (tmp_path / "userdata").mkdir()
    return tmp_path / "userdata" / "checkpoint"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The configured one; it is not there yet."""
    return tmp_path / "fast" / "images"


pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the directories are to be root's")


def test_an_image_is_led_elsewhere(directory: Path, elsewhere: Path) -> None:
    place.prepare(directory, str(elsewhere), "a", 1)
    assert directory.resolve() == elsewhere / MINE
    assert (elsewhere / MINE).stat().st_mode & 0o777 == 0o700
    assert elsewhere.stat().st_mode & 0o777 == 0o700


def test_without_a_wish_it_lies_with_podman(directory: Path) -> None:
    place.prepare(directory, "", "a", 1)
    assert not directory.is_symlink()


def test_one_that_has_its_place_keeps_it(directory: Path, elsewhere: Path, tmp_path: Path) -> None:
    place.prepare(directory, str(elsewhere), "a", 1)
    place.prepare(directory, str(tmp_path / "other"), "a", 1)
    assert directory.resolve() == elsewhere / MINE


def test_what_an_earlier_container_left_there_goes(directory: Path, elsewhere: Path) -> None:
    (elsewhere / MINE).mkdir(parents=True, mode=0o700)
    (elsewhere / MINE / "pages-1.img").touch()
    (elsewhere / f"{MINE}.before").mkdir()
    place.prepare(directory, str(elsewhere), "a", 1)
    assert [path.name for path in elsewhere.iterdir()] == [MINE]
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o720])
def test_nothing_is_written_where_others_may(
    directory: Path, elsewhere: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere.mkdir(parents=True)
    elsewhere.parent.chmod(mode)
    place.prepare(directory, str(elsewhere), "a", 1)
    assert not directory.is_symlink() and list(elsewhere.iterdir()) == []
    assert f"others than root may write to {elsewhere.parent}" in caplog.text


def test_nor_where_another_is_the_owner(directory: Path, elsewhere: Path) -> None:
    elsewhere.parent.mkdir()
    os.chown(elsewhere.parent, 65534, 65534)
    place.prepare(directory, str(elsewhere), "a", 1)
    assert not directory.is_symlink() and not elsewhere.exists()


def test_a_link_on_the_way_leads_to_what_is_looked_at(
    directory: Path, elsewhere: Path, tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    elsewhere.parent.symlink_to(tmp_path / "open")
    place.prepare(directory, str(elsewhere), "a", 1)
    assert not directory.is_symlink() and list((tmp_path / "open").iterdir()) == []


def test_where_it_does_not_fit_it_lies_with_podman(
    directory: Path,
    elsewhere: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = SimpleNamespace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    place.prepare(directory, str(elsewhere), "a", 2 * 10**9)
    assert not directory.is_symlink()
    assert "it has 1.0 GB free, and 2.0 GB are needed" in caplog.text


def test_a_link_that_leads_nowhere_is_made_anew(
    directory: Path, elsewhere: Path, tmp_path: Path
) -> None:
    directory.symlink_to(tmp_path / "gone")
    place.prepare(directory, str(elsewhere), "a", 1)
    assert directory.resolve() == elsewhere / MINE
    directory.unlink()
    directory.symlink_to(tmp_path / "gone")
    place.prepare(directory, "/proc/nothing", "a", 1)
    assert not directory.is_symlink()


def test_it_goes_with_its_container_and_nothing_else_does(directory: Path, elsewhere: Path) -> None:
    place.prepare(directory, str(elsewhere), "a", 1)
    record = a_checkpoint(a_model("a"))
    place.remove(record)
    assert (elsewhere / MINE).is_dir()
    for other in (str(elsewhere), MINE, "/"):
        place.remove(replace(record, place=other))
        assert (elsewhere / MINE).is_dir()
    place.remove(replace(record, place=str(elsewhere / MINE)))
    assert list(elsewhere.iterdir()) == []
