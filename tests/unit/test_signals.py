# SPDX-License-Identifier: MIT
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmuxd.model import cgroup, signals
from llmuxd.model.freezer import NotFrozen

# Prints a line each time that it has forked another one, which does the same.
FORKS = """
import os, sys
while os.fork():
    os.wait()
    break
else:
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Two processes that wait for their input's end."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        pids = [parent.pid, int(parent.stdout.readline())]
        monkeypatch.setattr(cgroup, "processes", lambda _: list(pids))
        yield pids
        signals._send(pids, signal.SIGCONT)
        parent.stdin.close()


def test_all_stop_and_go_on(family: list[int]) -> None:
    signals.stop(Path("/unit"))
    assert [signals._state(pid) for pid in family] == ["T", "T"]
    signals.proceed(Path("/unit"))
    assert "T" not in [signals._state(pid) for pid in family]


def test_one_that_came_late_is_stopped_too(
    family: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def processes(_: Path) -> list[int]:
        seen.append(1)
        return family[:1] if len(seen) == 1 else family

    monkeypatch.setattr(cgroup, "processes", processes)
    signals.stop(Path("/unit"))
    assert [signals._state(pid) for pid in family] == ["T", "T"]


def test_what_does_not_stop_in_time_goes_on(
    family: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "LIMIT", 0.05)
    monkeypatch.setattr(signals, "_STILL", frozenset("Z"))
    with pytest.raises(NotFrozen, match="2 processes do not stop"):
        signals.stop(Path("/unit"))
    assert "T" not in [signals._state(pid) for pid in family]


def test_one_that_is_gone_is_still(family: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "processes", lambda _: [4_000_000])
    signals.stop(Path("/unit"))
    signals.proceed(Path("/unit"))
