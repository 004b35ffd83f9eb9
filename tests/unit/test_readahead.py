# SPDX-License-Identifier: MIT
import asyncio
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from llmuxd import memory
from llmuxd.model.checkpoint import SHM, Checkpoint
from llmuxd.readahead import read_ahead
from llmuxd.state import State

from .fake_units import a_model
from .page_cache import cached
from .stage import on_stage


@pytest.fixture
def begun() -> threading.Event:
    """Set once a file was asked for."""
    return threading.Event()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, begun: threading.Event) -> list[str]:
    """The files that the kernel was asked to read."""
    paths: list[str] = []

    def fadvise(descriptor: int, start: int, length: int, advice: int) -> None:
        assert length and advice == os.POSIX_FADV_WILLNEED
        if start == 0:
            paths.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        begun.set()

    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    return paths


def test_the_kernel_is_asked_for_each_file(tmp_path: Path, asked: list[str]) -> None:
    image = tmp_path / "checkpoint"
    image.mkdir()
    (image / "pages-1.img").write_bytes(bytes(100))
    (image / "inventory.img").write_bytes(bytes(10))
    (tmp_path / SHM).write_bytes(bytes(50))
    (tmp_path / "config.json").write_bytes(bytes(50))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert read_ahead(image, 160)
    assert asked == ["inventory.img", SHM, "pages-1.img"]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_large_file_is_read_to_its_end(tmp_path: Path) -> None:
    size = 32 << 20
    pages = tmp_path / "pages-1.img"
    with pages.open("wb") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert read_ahead(tmp_path, size)
    end = time.monotonic() + 10
    while cached(pages) < 1:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_image_that_would_fill_the_memory_is_not_read(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "pages-1.img").touch()
    assert not read_ahead(tmp_path, memory.available())
    assert asked == []


async def test_it_is_read_while_the_one_before_drains(
    asked: list[str], begun: threading.Event
) -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        await stage.ask("b")
        stage.switcher.checkpoint("b")
        await stage.until_state("b", State.CHECKPOINTED)
        busy = stage.client("a")
        await busy.admitted.wait()
        waiting = stage.client("b")
        await stage.until_state("a", State.DRAINING)
        assert await asyncio.to_thread(begun.wait, 5)
        await busy.finish()
        await waiting.admitted.wait()
        assert asked == ["inventory.img"]


async def test_one_that_is_gone_is_the_start_s_to_tell() -> None:
    async with on_stage(a_model("a"), a_model("b")) as stage:
        await stage.ask("b")
        stage.switcher.checkpoint("b")
        await stage.until_state("b", State.CHECKPOINTED)
        record = Checkpoint.load("b")
        assert record is not None
        await stage.ask("a")
        await asyncio.to_thread(shutil.rmtree, record.directory)
        await stage.ask("b")
        assert stage.served == ["b", "a", "b"]
