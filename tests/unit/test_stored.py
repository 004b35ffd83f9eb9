# SPDX-License-Identifier: MIT
"""forms/N has the files of /var/lib/llmux as the releases of form N write them."""

import shutil
from pathlib import Path

import pytest

from llmuxd import files, stored
from llmuxd.costs import Cost
from llmuxd.errors import StateTooNew
from llmuxd.model import __main__ as helper
from llmuxd.model.checkpoint import Checkpoint
from llmuxd.switcher.costbook import CostBook

FORMS = Path(__file__).with_name("forms")
OPT = "facebook/opt-125m"


def kept(form: int) -> Path:
    """The state of that form, in place."""
    shutil.copytree(FORMS / str(form), files.state_root(), dirs_exist_ok=True)
    return files.state_root()


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_each_form_is_kept_and_each_has_a_step_to_the_next() -> None:
    assert {int(path.name) for path in FORMS.iterdir()} == set(range(1, stored.FORM + 1))
    assert stored.STEPS.keys() == set(range(1, stored.FORM))


@pytest.mark.parametrize("form", range(1, stored.FORM + 1))
async def test_what_each_release_wrote_is_understood(form: int) -> None:
    kept(form)
    stored.bring_up_to_date()
    assert stored.form() == stored.FORM
    record = Checkpoint.load(OPT)
    assert record is not None and not record.invalid and record.size > 0 and record.manifest
    book = CostBook()
    await book.load()
    assert book.costs.known(OPT, Cost.COLD)


def test_a_new_host_has_this_form() -> None:
    stored.bring_up_to_date()
    assert files.read_json(files.state_root() / "form.json") == {"form": stored.FORM}


def test_what_has_no_number_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    (kept(1) / "form.json").unlink()
    monkeypatch.setattr(stored, "FORM", 2)
    monkeypatch.setattr(stored, "STEPS", {1: lambda root: (root / "stepped").touch()})
    stored.bring_up_to_date()
    assert (files.state_root() / "stepped").exists()
    assert stored.form() == 2


@pytest.mark.parametrize("text", ['{"form": 2}', '{"form": 0}', '{"form": "1"}', "{}", "x", ""])
def test_another_form_is_refused_and_left_alone(text: str) -> None:
    root = kept(1)
    (root / "form.json").write_text(text)
    before = contents(root)
    with pytest.raises(StateTooNew, match="knows 1 to 1.*install that release again"):
        stored.bring_up_to_date()
    with pytest.raises(StateTooNew):
        helper._model(OPT, None, "start")
    assert contents(root) == before
    # A model that runs can be ended all the same.
    assert helper._model(OPT, None, "stop").name == OPT


def test_a_step_that_was_cut_short_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    root, done = kept(1), list[str]()

    def first(root: Path) -> None:
        done.append("first")

    def second(root: Path) -> None:
        done.append("second")
        if len(done) == 2:
            raise OSError("the disk is full")

    monkeypatch.setattr(stored, "FORM", 3)
    monkeypatch.setattr(stored, "STEPS", {1: first, 2: second})
    with pytest.raises(OSError, match="full"):
        stored.bring_up_to_date()
    assert files.read_json(root / "form.json") == {"form": 2}
    stored.bring_up_to_date()
    assert done == ["first", "second", "second"]
    assert stored.form() == 3
