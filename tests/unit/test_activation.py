# SPDX-License-Identifier: MIT
import pytest

from llmuxd import files
from llmuxd.model import activation
from llmuxd.model.activation import Activation, Leave, Way, order_leave, take_leave_order

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


def test_files_of_a_model_do_not_meet() -> None:
    RUN.save()
    order_leave("a/b", Leave.STOP)
    paths = [activation.conmon_pidfile("a/b"), activation.stopping_mark("a/b")]
    assert len({*paths, *files.runtime_root().iterdir()}) == 4


def test_a_stop_that_kept_the_container_says_so() -> None:
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    assert not activation.was_kept("a")
    activation.stopping_mark("a").touch()
    assert not activation.was_kept("a")
    activation.mark_kept("a")
    assert activation.was_kept("a")
