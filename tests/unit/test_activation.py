# SPDX-License-Identifier: MIT
import errno
from dataclasses import replace
from pathlib import Path

import pytest

from llmuxd import files
from llmuxd.config import Sleep
from llmuxd.model import activation
from llmuxd.model.activation import (
    Activation,
    Leave,
    LeaveOrder,
    ParkOrder,
    Way,
    is_moved,
    note_place,
    noted_place,
    one_at_a_time,
    order_leave,
    order_park,
    take_leave_order,
    take_park_order,
)
from llmuxd.model.identity import Identity

RUN = Activation(
    model="a/b",
    port=21000,
    definition="d1",
    checkpoint=True,
    gpus=(0, 1),
    way=Way.COLD,
    seconds=34.5,
    why_cold="there is no checkpoint",
)


def test_round_trip_is_per_model() -> None:
    RUN.save()
    assert Activation.load("a/b") == RUN
    assert Activation.load("a-b") is None


def test_it_does_not_survive_a_reboot() -> None:
    RUN.save()
    assert len(list(files.runtime_root().iterdir())) == 1
    assert not files.state_root().exists()


def test_forgotten_is_gone_and_may_be_forgotten_again() -> None:
    RUN.save()
    Activation.forget("a/b")
    Activation.forget("a/b")
    assert Activation.load("a/b") is None


@pytest.mark.parametrize(
    "damage", [{"port": None}, {"way": "by magic"}, {"seconds": "soon"}, {"port": "80x"}]
)
def test_damaged_file_is_no_activation(damage: dict[str, object]) -> None:
    RUN.save()
    (path,) = files.runtime_root().iterdir()
    files.write_json(path, (files.read_json(path) or {}) | damage)
    assert Activation.load("a/b") is None


def test_the_place_is_known_from_the_begin_to_the_end() -> None:
    assert noted_place("a/b") is None
    note_place("a/b", (0, 1))
    assert noted_place("a/b") == (0, 1) and noted_place("a-b") is None
    RUN.save()
    assert noted_place("a/b") == (0, 1)
    Activation.forget("a/b")
    assert noted_place("a/b") is None


@pytest.mark.parametrize(("gpus", "place"), [(["x"], None), (None, None), ([], ())])
def test_a_damaged_place_is_none(gpus: object, place: tuple[int, ...] | None) -> None:
    note_place("a", (0,))
    (path,) = files.runtime_root().iterdir()
    files.write_json(path, {"gpus": gpus})
    assert noted_place("a") == place


def test_who_is_moved_is_known_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    files.runtime_root().mkdir(parents=True)
    assert not is_moved("a") and not list(files.runtime_root().iterdir())
    with one_at_a_time("a"):
        assert is_moved("a")
    assert not is_moved("a")

    def full(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "open", full)
    assert is_moved("a"), "it may be"


def test_without_an_order_the_unit_leaves_with_a_checkpoint() -> None:
    assert take_leave_order("a/b").leave is Leave.CHECKPOINT


def test_an_order_holds_once() -> None:
    order_leave("a/b", Leave.STOP)
    assert take_leave_order("a-b").leave is Leave.CHECKPOINT
    assert take_leave_order("a/b").leave is Leave.STOP
    assert take_leave_order("a/b").leave is Leave.CHECKPOINT


def test_the_last_order_counts() -> None:
    order_leave("a/b", Leave.STOP)
    order_leave("a/b", Leave.CHECKPOINT)
    assert take_leave_order("a/b").leave is Leave.CHECKPOINT


def test_an_order_may_say_what_to_let_go_of() -> None:
    order_leave("a/b", Leave.CHECKPOINT, ["c"], Sleep.KV)
    assert take_leave_order("a/b") == LeaveOrder(Leave.CHECKPOINT, ("c",), Sleep.KV)
    order_park("a/b", Sleep.LEVEL_2)
    assert take_park_order("a/b") == ParkOrder(Sleep.LEVEL_2)
    order_park("a/b")
    assert take_park_order("a/b") == ParkOrder(None)
    assert take_park_order("a/b") is None


def test_a_run_knows_what_it_is_on() -> None:
    run = replace(RUN, identity=Identity("d1", "i", "m", "k", "c", gpus="H100"))
    run.save()
    assert Activation.load("a/b") == run


def test_files_of_a_model_do_not_meet() -> None:
    RUN.save()
    order_leave("a/b", Leave.STOP)
    note_place("a/b", (0,))
    paths = [activation.conmon_pidfile("a/b"), activation.stopping_mark("a/b")]
    assert len({*paths, *files.runtime_root().iterdir()}) == 5


def test_a_stop_that_kept_the_container_says_so() -> None:
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    assert not activation.was_kept("a")
    activation.stopping_mark("a").touch()
    assert not activation.was_kept("a")
    activation.mark_kept("a")
    assert activation.was_kept("a")
