# SPDX-License-Identifier: MIT
"""What a model's unit lets go of: by its start, and by an order."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmuxd import files
from llmuxd.config import ModelConfig, Sleep, Snapshot, Tier
from llmuxd.model import identity, imaging, parking, resident
from llmuxd.model.activation import Activation, LeaveOrder, order_park
from llmuxd.model.container import Container, Facts
from llmuxd.model.imaging import Written
from llmuxd.model.lifecycle import Lifecycle
from llmuxd.model.moves import Stopwatch
from llmuxd.model.process import CommandFailed
from llmuxd.model.starting import Running
from llmuxd.model.tuning import Tuning

from .fake_units import an_activation, an_identity

MODEL = ModelConfig("a", "localhost/mine")
HERE = an_identity(MODEL)
TUNED = Tuning("a", HERE, 1.0, (), {Tier.CHECKPOINT: Sleep.LEVEL_1, Tier.PARK: Sleep.LEVEL_2})


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "listen", lambda model: None)


def started(model: ModelConfig = MODEL, here: identity.Identity | None = HERE) -> Activation:
    """What its helper says of a run that was restored; of a cold start where `here` is None."""
    return Lifecycle(model)._activation(Running(1, 2, "", "" if here else "cold", here), 1.0)


def sleeps(run: Activation) -> tuple[Sleep, Sleep]:
    return run.image_sleep, run.park_sleep


def test_a_start_goes_by_what_was_measured() -> None:
    assert sleeps(started()) == (Sleep.LEVEL_2, Sleep.LEVEL_1)
    TUNED.save()
    assert sleeps(started()) == (Sleep.LEVEL_1, Sleep.LEVEL_2)
    assert started().identity == HERE


def test_what_the_configuration_says_goes_before_it() -> None:
    TUNED.save()
    assert sleeps(started(replace(MODEL, park_sleep=Sleep.OFF))) == (Sleep.LEVEL_1, Sleep.OFF)


def test_on_another_host_it_is_ignored_and_told(caplog: pytest.LogCaptureFixture) -> None:
    TUNED.save()
    with caplog.at_level("INFO", "llmux-model"):
        other = started(here=replace(HERE, gpus="NVIDIA H200"))
    assert sleeps(other) == (Sleep.LEVEL_2, Sleep.LEVEL_1)
    assert "is not used: the host's GPUs changed" in caplog.text


def test_a_cold_start_looks_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    TUNED.save()
    monkeypatch.setattr(identity, "here", lambda *_: HERE)
    monkeypatch.setattr(Container, "image_id", lambda _: "i")
    assert sleeps(started(here=None)) == (Sleep.LEVEL_1, Sleep.LEVEL_2)


def test_an_image_that_nobody_can_look_up_is_no_reason_not_to_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Container) -> str:
        raise CommandFailed(["podman"], 124, "it did not end")

    TUNED.save()
    monkeypatch.setattr(Container, "image_id", fail)
    run = started(here=None)
    assert run.identity is None and sleeps(run) == (Sleep.LEVEL_2, Sleep.LEVEL_1)


def test_where_nothing_can_be_let_go_of_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """podman, CRIU and the driver's files are left alone."""
    monkeypatch.setattr(Container, "image_id", lambda _: pytest.fail("podman was asked"))
    run = started(replace(MODEL, devices=()), None)
    assert run.identity is None and sleeps(run) == (Sleep.OFF, Sleep.OFF)


@pytest.fixture
def parks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Sleep, bool]]]:
    """What each park of the model, which runs, is to let go of, and whether to be measured."""
    found: list[tuple[Sleep, bool]] = []
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    replace(an_activation("a", 1), park_sleep=Sleep.LEVEL_1).save()
    monkeypatch.setattr(
        parking, "park", lambda run, watch, trial: found.append((run.park_sleep, trial))
    )
    yield found


def test_a_park_may_be_told_what_to_let_go_of(parks: list[tuple[Sleep, bool]]) -> None:
    unit = Lifecycle(MODEL)
    for verb in ("park", "park 2", "park off", "park"):
        assert unit._answer(verb) == "done"
    assert "there is no" in unit._answer("park 3")
    assert parks == [
        (Sleep.LEVEL_1, False), (Sleep.LEVEL_2, True), (Sleep.OFF, True), (Sleep.LEVEL_1, False),
    ]  # fmt: skip


def test_so_may_a_reload(parks: list[tuple[Sleep, bool]]) -> None:
    for sleep in (Sleep.KV, None):
        order_park("a", sleep)
        Lifecycle(MODEL).reload()
    assert parks == [(Sleep.KV, True), (Sleep.LEVEL_1, False)]


def test_an_image_that_is_to_be_measured_is_written_whatever_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the server of a model with a good image is just killed."""
    written: list[tuple[Sleep, bool]] = []

    def write(container: object, facts: object, run: Activation, *more: object) -> Written:
        written.append((run.image_sleep, bool(more[-1])))
        return Written.NEW

    monkeypatch.setattr(imaging, "is_whole", lambda *_: True)
    monkeypatch.setattr(imaging, "write", write)
    run = replace(an_activation("a", 1), snapshot=Snapshot.PRISTINE, image_sleep=Sleep.LEVEL_2)
    facts = Facts("c1", "i1", True, 1, 2, tmp_path)
    unit = Lifecycle(MODEL)
    monkeypatch.setattr(unit._container, "kill", lambda: None)
    for order in (LeaveOrder(sleep=Sleep.LEVEL_1), LeaveOrder()):
        assert unit._leave_image(facts, run, order, Stopwatch("checkpoint"))
    assert written == [(Sleep.LEVEL_1, True)]


@pytest.mark.parametrize(
    ("snapshot", "whole", "kept"),
    [(Snapshot.LIVE, True, True), (Snapshot.LIVE, False, False), (Snapshot.PRISTINE, True, False)],
)
def test_a_live_model_that_does_not_wake_goes_back_to_its_last_image(
    snapshot: Snapshot, whole: bool, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise parking.CannotWake("its canary says no")

    ended: list[str] = []
    monkeypatch.setattr(parking, "wake", refuse)
    monkeypatch.setattr(parking, "thaw", lambda _: ended.append("thaw"))
    monkeypatch.setattr(imaging, "is_whole", lambda *_: whole)
    run = replace(an_activation("a", 1), snapshot=snapshot)
    unit = Lifecycle(MODEL)
    monkeypatch.setattr(unit._container, "halt", lambda: ended.append("halt"))
    order = LeaveOrder(sleep=None if snapshot is Snapshot.LIVE else Sleep.OFF)
    facts = Facts("c1", "i1", True, 1, 2, tmp_path)
    assert unit._leave_image(facts, run, order, Stopwatch("checkpoint")) is kept
    assert ended == (["thaw", "halt"] if kept else [])
