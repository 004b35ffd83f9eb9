# SPDX-License-Identifier: MIT
from pathlib import Path

import pytest

from llmuxd import accepted, config, files
from llmuxd.errors import ConfigInvalid

GOOD = "models: {a: {image: i, env: {TOKEN: secret}}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "llmux.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def test_units_read_what_was_accepted_and_not_what_the_file_says_by_then(file: Path) -> None:
    accepted.publish(config.load(file))
    file.write_text("models: [", encoding="utf-8")
    assert list(accepted.load().models) == ["a"]
    assert accepted.load().path == accepted.path() == file


def test_the_next_one_takes_its_place(file: Path) -> None:
    accepted.publish(config.load(file))
    file.write_text("models: {b: {image: i}}", encoding="utf-8")
    accepted.publish(config.load(file))
    assert list(accepted.load().models) == ["b"]


def test_without_llmuxd_the_file_counts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted.publish(config.load(file))
    accepted.withdraw()
    accepted.withdraw()
    monkeypatch.setattr(accepted, "DEFAULT_PATH", file)
    file.write_text("models: {b: {image: i}}", encoding="utf-8")
    assert list(accepted.load().models) == ["b"]
    file.write_text("models: [", encoding="utf-8")
    with pytest.raises(ConfigInvalid):
        accepted.load()


def test_it_is_for_root_alone(file: Path) -> None:
    accepted.publish(config.load(file))
    copies = [each for each in files.runtime_root().iterdir() if not each.is_symlink()]
    assert [(each.name, oct(each.stat().st_mode & 0o777)) for each in copies] == [
        ("accepted.yaml", "0o600")
    ]


def test_what_cannot_be_kept_is_told(file: Path) -> None:
    (files.runtime_root() / "accepted.yaml.new").mkdir(parents=True)
    with pytest.raises(ConfigInvalid, match=r"accepted\.yaml: "):
        accepted.publish(config.load(file))
