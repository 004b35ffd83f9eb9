# SPDX-License-Identifier: MIT
import logging

import pytest

from llmuxd import files
from llmuxd.model.moves import Direction, Move, Stopwatch


def test_a_stopwatch_has_the_parts_in_their_order() -> None:
    watch = Stopwatch("start")
    with watch.part("restore"):
        pass
    with watch.part("health"), pytest.raises(OSError), watch.part("inner"):
        raise OSError
    with watch.part("restore"):
        pass
    watch.way = "restore"
    move = watch.move()
    assert move.way == "restore"
    assert list(move.parts) == ["restore", "inner", "health"]
    assert 0 <= sum(move.parts.values()) - move.parts["inner"] <= move.seconds


def test_the_last_of_each_direction_is_kept() -> None:
    move = Move("kill", 0.25, {"look": 0.05, "kill": 0.2}, 1700000000.0)
    move.save("a/b", Direction.OUT)
    assert Move.load("a/b", Direction.OUT) == move
    assert Move.load("a/b", Direction.IN) is None


@pytest.mark.parametrize("damage", [{"parts": 3}, {"seconds": "soon"}, {"parts": {"a": "b"}}])
def test_a_damaged_one_is_none(damage: dict[str, object]) -> None:
    Move("kill", 0.25, {}, 1.0).save("a", Direction.OUT)
    (path,) = files.runtime_root().iterdir()
    files.write_json(path, (files.read_json(path) or {}) | damage)
    assert Move.load("a", Direction.OUT) is None


def test_the_journal_is_told_the_parts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Move("kill", 0.25, {"look": 0.05}, 1.0).save("a/b", Direction.OUT)
    (told,) = caplog.records
    assert told.message == "gone after 0.25 s (kill, look 0.050 s)"
    assert told.journal == {  # type: ignore[attr-defined]
        "LLMUX_MODEL": "a/b",
        "LLMUX_PHASE": "kill",
        "LLMUX_SECONDS": "0.250",
        "LLMUX_SECONDS_LOOK": "0.050",
    }
