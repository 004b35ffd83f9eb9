# SPDX-License-Identifier: MIT
"""forms/N has the files of /var/lib/llmux as the releases of form N write them.

forms/N-before-… has what those wrote that had some keys and files of that form not yet.
Not seccomp.json, which each start of a container makes anew where podman has another profile.
"""

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from llmuxd import config, files, names, stored
from llmuxd.costs import Cost
from llmuxd.errors import StateNotKept, StateTooNew
from llmuxd.model import __main__ as helper
from llmuxd.model import checkpoint
from llmuxd.model.bystander import Bystander
from llmuxd.model.checkpoint import Checkpoint
from llmuxd.model.identity import Identity
from llmuxd.model.lifecycle import Lifecycle
from llmuxd.model.tuning import Tuning
from llmuxd.switcher.costbook import CostBook

FORMS = Path(__file__).with_name("forms")
OPT, GEMMA = "facebook/opt-125m", "gemma-3-270m"


def kept(form: int | str) -> Path:
    """The state of that form, in place."""
    shutil.copytree(FORMS / str(form), files.state_root(), dirs_exist_ok=True)
    return files.state_root()


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def records(root: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((root / "checkpoints").iterdir())]


def test_each_form_is_kept_and_each_has_a_step_to_the_next() -> None:
    numbers = {int(path.name.partition("-")[0]) for path in FORMS.iterdir()}
    assert numbers == set(range(1, stored.FORM + 1))
    assert stored.STEPS.keys() == set(range(1, stored.FORM))


def test_the_copy_of_this_form_has_all_that_is_written_now() -> None:
    """A key that is new has to be thought of: may an older release ignore it (see stored.py)?"""
    root = FORMS / str(stored.FORM)
    for record in records(root):
        assert record.keys() == {field.name for field in fields(Checkpoint)}
        assert record["identity"].keys() == {field.name for field in fields(Identity)}
    (path,) = (root / "tunings").iterdir()
    assert json.loads(path.read_text()).keys() == {field.name for field in fields(Tuning)}
    costs = json.loads((root / "costs.json").read_text())
    assert costs.keys() == {"version", "models", "vram"}
    assert {cost for model in costs["models"].values() for cost in model} <= {*Cost}


@pytest.mark.parametrize("form", sorted(path.name for path in FORMS.iterdir()))
async def test_what_each_release_wrote_is_understood(form: str) -> None:
    kept(form)
    stored.bring_up_to_date()
    assert stored.form() == stored.FORM
    record = Checkpoint.load(OPT)
    assert record is not None and not record.invalid and record.size > 0 and record.manifest
    book = CostBook()
    await book.load()
    assert book.costs.known(OPT, Cost.COLD)


def test_what_an_image_does_not_say_of_its_sleep_is_as_it_was_then() -> None:
    root = kept("2-before-tunings")
    assert not any({"sleep", "trial"} & record.keys() for record in records(root))
    for model in (OPT, GEMMA):
        record = Checkpoint.load(model)
        assert record is not None and not record.invalid
        assert (record.sleep, record.trial) == (None, False)
    assert Tuning.load(OPT) is None


def test_nothing_of_this_form_is_lost_when_it_is_read_and_written() -> None:
    root = kept(stored.FORM)
    before = records(root)
    for record in before:
        loaded = Checkpoint.load(record["model"])
        assert loaded is not None
        loaded.save()
    assert records(root) == before
    (path,) = (root / "tunings").iterdir()
    text, tuned = path.read_text(), Tuning.load(OPT)
    assert tuned is not None and tuned.chosen and all(each.rounds for each in tuned.figures)
    tuned.save()
    assert path.read_text() == text
    gemma = Checkpoint.load(GEMMA)
    assert gemma is not None and gemma.live and gemma.place and gemma.question is not None


def test_a_new_host_has_this_form(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert stored.form() == stored.FORM
    stored.bring_up_to_date()
    assert files.read_json(files.state_root() / "form.json") == {"form": stored.FORM}
    assert not caplog.text


def test_what_has_no_number_is_the_first() -> None:
    (kept(1) / "form.json").unlink()
    assert stored.form() == 1
    stored.bring_up_to_date()
    assert stored.form() == stored.FORM
    assert records(files.state_root())[0]["place"] == ""


@pytest.mark.parametrize("text", ['{"form": 9}', '{"form": 0}', '{"form": "1"}', "{}", "x", ""])
def test_another_form_is_refused_and_left_alone(text: str) -> None:
    root = kept(1)
    (root / "form.json").write_text(text)
    before = contents(root)
    with pytest.raises(StateTooNew, match=f"knows 1 to {stored.FORM}.*install that release again"):
        stored.bring_up_to_date()
    with pytest.raises(StateTooNew):
        helper._model(OPT, None, "start")
    # A model that runs can be ended all the same.
    model = helper._model(OPT, None, "stop")
    assert isinstance(helper._attending(model, None), Bystander)
    assert contents(root) == before


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_the_helper_that_is_first_brings_it_up_to_date(verb: str, tmp_path: Path) -> None:
    kept(1)
    path = tmp_path / "llmux.yaml"
    path.write_text(f"models: {{{OPT}: {{image: i}}}}")
    found = helper._attending(helper._model(OPT, path, verb), path)
    assert type(found) is Lifecycle
    assert stored.form() == stored.FORM


# From form 1 to 2


def test_an_image_of_the_first_form_is_asked_what_was_asked_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept(1)
    stored.bring_up_to_date()
    monkeypatch.setattr(checkpoint, "CANARY_PROMPT", "another")
    monkeypatch.setattr(config, "CANARY_PROMPT", "another")
    record = Checkpoint.load(OPT)
    assert record is not None and record.canary_prompt == "The quick brown fox jumps over the lazy"
    assert record.identity.container_form == "" and record.place == ""


def test_what_was_written_before_the_step_stays_and_so_does_its_time() -> None:
    root = kept(1)
    path = root / "checkpoints" / f"{names.slug(OPT)}.json"
    record = json.loads(path.read_text()) | {"place": "/srv/images/x", "live": True}
    path.write_text(json.dumps(record))
    os.utime(path, (17, 17))
    (root / "checkpoints" / "broken.json").write_text("{")
    stored.bring_up_to_date()
    (after,) = [each for each in [Checkpoint.load(OPT)] if each is not None]
    assert (after.place, after.live, after.size) == ("/srv/images/x", True, record["size"])
    assert checkpoint.used_at(OPT) == 17
    assert (root / "checkpoints" / "broken.json").read_text() == "{"


def test_where_it_cannot_be_written_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    root = kept(1)
    before = contents(root)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(StateNotKept, match="form 2: No space left on device .*has its disk room"):
        stored.bring_up_to_date()
    with pytest.raises(StateNotKept):
        helper._model(OPT, None, "start")
    assert contents(root) == before
    assert isinstance(helper._attending(helper._model(OPT, None, "stop"), None), Bystander)


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
    with pytest.raises(StateNotKept, match="the disk is full"):
        stored.bring_up_to_date()
    assert files.read_json(root / "form.json") == {"form": 2}
    stored.bring_up_to_date()
    assert done == ["first", "second", "second"]
    assert stored.form() == 3
