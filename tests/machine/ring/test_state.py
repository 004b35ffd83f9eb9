# SPDX-License-Identifier: MIT
"""From one release to the next, and back: what is kept in /var/lib/llmux."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmuxd import names, stored
from llmuxd.model import identity

from .guest import (
    CHECKPOINTS,
    OPT,
    QWEN,
    Json,
    complete,
    counter,
    eventually,
    fails,
    image,
    journal,
    record,
    sh,
    state,
    two_fakes,
    unit,
)

FORM = Path("/var/lib/llmux/form.json")
# What records of the first form did not have.
LATER = ("canary_prompt", "question", "overslept", "live", "place")


@pytest.fixture(autouse=True)
def this_form() -> Iterator[None]:
    """Whatever a test writes there."""
    yield
    FORM.write_text(json.dumps({"form": stored.FORM}))


def rewrite(model: str, record: Json) -> None:
    path = CHECKPOINTS / f"{names.slug(model)}.json"
    path.write_text(json.dumps(record))


def checkpointed(model: str) -> None:
    assert complete(model).text
    sh("llmuxctl", "checkpoint", model)
    assert state(model) == "checkpointed"


def of_form_1(model: str) -> None:
    """As the first release left it, and nobody has started since."""
    sh("systemctl", "stop", "llmuxd.socket", "llmuxd.service")
    old = {key: value for key, value in record(model).items() if key not in LATER}
    del old["identity"]["container_form"]
    rewrite(model, old)
    FORM.write_text('{"form": 1}')


def test_an_image_of_the_first_form_is_restored() -> None:
    two_fakes()
    checkpointed(OPT)
    of_form_1(OPT)
    assert "form 1, which llmuxd makes" in sh("llmuxctl", "check", check=False)
    sh("systemctl", "start", "llmuxd.socket", "llmuxd.service")
    assert json.loads(FORM.read_text()) == {"form": stored.FORM}
    assert complete(OPT).text
    assert counter(OPT) == 2  # the same server as before
    assert record(OPT)["identity"]["container_form"] == ""


def test_a_model_that_is_started_by_hand_is_the_first_to_see_it() -> None:
    two_fakes()
    checkpointed(OPT)
    of_form_1(OPT)
    sh("systemctl", "start", names.unit(OPT))
    assert json.loads(FORM.read_text()) == {"form": stored.FORM}
    assert counter(OPT) == 1


def test_after_a_step_back_nothing_starts_and_nothing_is_lost() -> None:
    two_fakes()
    checkpointed(QWEN)
    checkpointed(OPT)
    assert complete(OPT).text
    before = {model: (record(model), image(model)) for model in (OPT, QWEN)}
    FORM.write_text('{"form": 1000}')
    refused = "the state in /var/lib/llmux is of form 1000; this llmuxd knows 1 to"
    # What the package's scripts do.
    fails("systemctl", "restart", "llmuxd.service")
    eventually(lambda: refused in journal("llmuxd.service"), "llmuxd says why it does not start")
    status, said = fails("llmuxctl", "check")
    assert status == 1 and f"fail  state            {refused}" in said
    sh("systemctl", "stop", "llmuxd.socket", "llmuxd.service")
    fails("systemctl", "start", names.unit(QWEN))
    assert refused in journal(names.unit(QWEN)) and refused in unit(QWEN, "StatusText")
    # The one that runs is ended by what is installed now.
    sh("systemctl", "stop", names.unit(OPT))
    assert unit(OPT, "Result") == "success" and refused in journal(names.unit(OPT))
    assert {model: (record(model), image(model)) for model in (OPT, QWEN)} == before
    # And forward again.
    FORM.write_text(json.dumps({"form": stored.FORM}))
    sh("systemctl", "start", "llmuxd.socket", "llmuxd.service")
    for model, served in ((OPT, 2), (QWEN, 2)):
        assert complete(model).text
        assert counter(model) == served


@pytest.mark.parametrize("form", ["1", "99"])
def test_images_of_another_form_of_container_stay_until_their_models_start(form: str) -> None:
    two_fakes()
    checkpointed(QWEN)
    checkpointed(OPT)
    for model in (QWEN, OPT):
        old = record(model)
        old["identity"] |= {"container_form": form, "definition": "of another form"}
        rewrite(model, old)
    two_fakes()  # starts llmuxd anew
    why = (
        "it was taken by an llmuxd that made containers in another form"
        f" ({form}, not {identity.FORM})"
    )
    assert f"none ({why})" in sh("llmuxctl", "show", OPT)
    assert complete(OPT).text
    assert counter(OPT) == 1
    assert f"cold start: the checkpoint cannot be used: {why}" in journal(names.unit(OPT))
    assert not record(QWEN)["invalid"] and (image(QWEN) / "inventory.img").exists()
    assert complete(QWEN).text
    assert counter(QWEN) == 1
