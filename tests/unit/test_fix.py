# SPDX-License-Identifier: MIT
import io
from pathlib import Path

import pytest

from llmuxd.ctl import check, fix
from llmuxd.ctl.checks import result
from llmuxd.ctl.checks.change import AddLines, MakeDirectory, Run
from llmuxd.ctl.checks.host import Done, Host
from llmuxd.ctl.checks.look import Look
from llmuxd.ctl.checks.result import Result
from llmuxd.errors import NotChanged


def test_lines_are_added_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "criu" / "crun.conf"
    AddLines(str(path), ("tcp-established", "timeout=300")).make(Host())
    assert path.read_text() == "tcp-established\ntimeout=300\n"
    path.write_text("# mine\nfile-locks")
    path.chmod(0o600)
    AddLines(str(path), ("link-remap",)).make(Host())
    assert path.read_text() == "# mine\nfile-locks\nlink-remap\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a\n")
    (tmp_path / "link").symlink_to("file")
    AddLines(str(tmp_path / "link"), ("b",)).make(Host())
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "a\nb\n"


def test_what_cannot_be_done_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for change in (AddLines(f"{tmp_path}/file/x", ("a",)), MakeDirectory(f"{tmp_path}/file/x")):
        with pytest.raises(NotChanged, match="cannot be"):
            change.make(Host())
    with pytest.raises(NotChanged, match="false: "):
        Run(("false",)).make(Host())


@pytest.fixture
def lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that lacks two things, of which the second can only be seen with the first."""
    first, second = tmp_path / "first", tmp_path / "second"

    def one(look: Look) -> Result:
        if first.is_dir():
            return result.ok("one", "here")
        return result.fail("one", "no first", "make it", MakeDirectory(str(first)))

    def two(look: Look) -> Result:
        if not first.is_dir():
            return result.skip("two", "cannot be seen")
        if second.exists():
            return result.ok("two", "here")
        return result.warn("two", "no second", "write it", AddLines(str(second), ("x",)))

    monkeypatch.setattr(check, "CHECKS", (one, two))
    monkeypatch.setattr(Host, "is_root", lambda self: True)
    return tmp_path


def test_all_is_mended_in_turn(lacking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = fix.run(lacking / "llmux.yaml", ask=False)
    assert {each.status for each in results} == {result.Status.OK}
    shown = capsys.readouterr().err
    assert f"mkdir -p {lacking}/first\n" in shown
    assert f"add to {lacking}/second:\n    x\n" in shown


def test_nothing_is_done_without_a_yes(
    lacking: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    results = fix.run(lacking / "llmux.yaml", ask=True)
    assert [each.name for each in results if each.failed] == ["one"]
    assert list(lacking.iterdir()) == []
    assert capsys.readouterr().err.count("do this?") == 1


def test_yes_is_for_one_result(lacking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    results = fix.run(lacking / "llmux.yaml", ask=True)
    assert [each.status for each in results] == ["ok", "ok", "warn"]


def test_a_change_that_does_not_help_is_not_made_for_ever(
    lacking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "run", lambda self, argv: Done(0, ""))
    broken = result.fail("broken", "still", "try", Run(("true",)))
    monkeypatch.setattr(check, "CHECKS", (lambda look: broken,))
    assert fix.run(lacking / "llmux.yaml", ask=False)[-1] is broken
