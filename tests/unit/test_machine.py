# SPDX-License-Identifier: MIT
"""The test machines' own housekeeping."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.machine import host, keeper
from tests.machine.machine import Machine


def test_two_machines_can_be_ended_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "RUN", tmp_path / "run")
    monkeypatch.setattr(host, "require_root", lambda: None)
    monkeypatch.setenv("LLMUX_MACHINE_STATE", str(tmp_path / "state"))

    def end(name: str) -> None:
        for _ in range(200):
            Machine(name).poweroff()

    with ThreadPoolExecutor() as threads:
        for ended in [threads.submit(end, f"ended-at-once-{number}") for number in range(4)]:
            ended.result()
    assert not list(tmp_path.iterdir())
