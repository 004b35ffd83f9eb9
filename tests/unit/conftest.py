# SPDX-License-Identifier: MIT
"""Fixtures of the unit ring: no bus, no systemd, no process."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from . import fake_cuda, fake_nvml
from .guards import no_child_left, no_task_left, time_limit
from .house import House, a_house

# The same examples each time, and no database beside the sources.
hypothesis.settings.register_profile(
    "unit", derandomize=True, database=None, deadline=None, max_examples=200
)
# Other examples each time, and many.
hypothesis.settings.register_profile(
    "nightly", database=None, deadline=None, max_examples=10_000, print_blob=True
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "unit"))


@pytest.fixture(autouse=True)
def _bounded(request: pytest.FixtureRequest) -> Iterator[None]:
    mark = request.node.get_closest_marker("seconds")
    with no_child_left(), time_limit(mark.args[0]) if mark else time_limit():
        yield


@pytest.fixture(autouse=True)
async def _tidy(_bounded: None) -> AsyncIterator[None]:
    async with no_task_left():
        yield


@pytest.fixture(autouse=True)
def _no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who attends a model has nobody to notify."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)


@pytest.fixture(autouse=True)
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State and run-time directories of the test's own; their common parent."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="session")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A libcuda.so.1 that records its calls."""
    return fake_cuda.compiled(tmp_path_factory.mktemp("libcuda"))


@pytest.fixture
def cuda(libcuda: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fake_cuda.FakeCuda:
    """The same, in a test of its own, with no process that uses CUDA yet."""
    directory = tmp_path / "cuda"
    directory.mkdir()
    monkeypatch.setenv("FAKE_CUDA", str(directory))
    return fake_cuda.FakeCuda(libcuda, directory, monkeypatch)


@pytest.fixture(scope="session")
def libnvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A libnvidia-ml.so.1 that says what a file says."""
    return fake_nvml.compiled(tmp_path_factory.mktemp("libnvml"))


@pytest.fixture
def nvml(libnvml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fake_nvml.FakeNvml:
    """The same, in a test of its own, with one H100 that nobody uses."""
    file = tmp_path / "nvml"
    monkeypatch.setenv("FAKE_NVML", str(file))
    fake = fake_nvml.FakeNvml(libnvml, file)
    fake.tell(fake_nvml.H100)
    return fake


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """A proxy before a switcher before an engine."""
    async with a_house() as built:
        yield built
