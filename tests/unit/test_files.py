# SPDX-License-Identifier: MIT
import json
import os
from pathlib import Path

import pytest

from llmuxd import files


def test_round_trip_makes_the_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    files.write_json(path, {"é": [1, None]})
    assert files.read_json(path) == {"é": [1, None]}
    assert [entry.name for entry in path.parent.iterdir()] == ["b.json"]


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"long": "x" * 100_000, "bad": object()})
    assert files.read_json(path) == {"old": 1}


def test_new_content_is_on_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    path = tmp_path / "a.json"
    files.write_json(path, {"n": 1})

    def fsync(fd: int) -> None:
        synced = Path(f"/proc/self/fd/{fd}").resolve()
        seen.append("its name" if synced == tmp_path else synced.read_text())
        assert files.read_json(path) == {"n": len(seen)}

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_json(path, {"n": 2})
    content, name = seen
    assert (json.loads(content), name) == ({"n": 2}, "its name")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"null", b"3", b"\xff\xfe{", b'{"a": 1} x', b"\x00" * 10]
)
def test_unreadable_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert files.read_json(tmp_path / "a.json") is None


def test_absent_or_a_folder_is_none(tmp_path: Path) -> None:
    assert files.read_json(tmp_path / "none.json") is None
    assert files.read_json(tmp_path) is None


def test_roots_are_those_that_systemd_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/s")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/r")
    assert (files.state_root(), files.runtime_root()) == (Path("/s"), Path("/r"))
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    assert (files.state_root(), files.runtime_root()) == (
        Path("/var/lib/llmux"), Path("/run/llmux"),
    )  # fmt: skip
