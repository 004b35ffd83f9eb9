# SPDX-License-Identifier: MIT
"""What systemd hears of a model's unit."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmuxd.model.notify import notify


@pytest.fixture
def systemd() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(5)
        yield listening


@pytest.mark.parametrize("abstract", [False, True])
def test_it_hears_what_it_is_told(
    systemd: socket.socket, abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"@llmux-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    systemd.bind(place.replace("@", "\0", 1) if abstract else place)
    monkeypatch.setenv("NOTIFY_SOCKET", place)
    notify("READY=1\nSTATUS=serving ✓")
    assert systemd.recv(256).decode() == "READY=1\nSTATUS=serving ✓"


def test_one_that_does_not_listen_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")
