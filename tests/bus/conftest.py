# SPDX-License-Identifier: MIT
"""Fixtures of the bus ring: a private bus with the shipped policy, and a mock of systemd."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.unit.guards import no_child_left, no_task_left, time_limit

from .polkit import Polkit
from .private_bus import PrivateBus, a_private_bus
from .systemd1 import Systemd


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with no_child_left(), time_limit():
        yield


@pytest.fixture(autouse=True)
async def _tidy(_bounded: None) -> AsyncIterator[None]:
    async with no_task_left():
        yield


@pytest.fixture(autouse=True)
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State and run-time directories of the test's own; their common parent."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    return tmp_path


@pytest.fixture
def bus(_bounded: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateBus]:
    """A private system bus, which everything in the test takes for the host's."""
    # Not in pytest's own folders: other users have to reach the socket.
    with tempfile.TemporaryDirectory(prefix="llmux-bus-") as directory:
        Path(directory).chmod(0o755)
        with a_private_bus(Path(directory)) as private:
            monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", private.address)
            yield private


@pytest.fixture
async def systemd(bus: PrivateBus, _tidy: None) -> AsyncIterator[Systemd]:
    """A mock of PID 1 on the private bus."""
    mock = Systemd()
    await mock.attach(bus)
    yield mock
    await mock.close()


@pytest.fixture
async def polkit(bus: PrivateBus, _tidy: None) -> AsyncIterator[Polkit]:
    """A mock of polkit on the private bus; it says no."""
    mock = Polkit()
    await mock.attach(bus)
    yield mock
    await mock.close()
