# SPDX-License-Identifier: MIT
"""What of a switch goes on at the same time: of two programs one is held, and the other goes on."""

import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .guest import (
    OPT,
    QWEN,
    complete,
    configure,
    counter,
    eventually,
    image,
    sh,
    state,
    stream,
    unit,
)
from .holding import HELD, HOLD, held

# One is not let in beside another where nobody knows what it takes of a device.
DEVICE = {"devices": ["/dev/null"]}


@pytest.fixture
def held_podman() -> Iterator[Callable[[], None]]:
    """podman stop, by which a killed server's container is tidied up."""
    yield from held(Path("/usr/local/sbin/podman"), "/usr/bin/podman", "stop")


@pytest.fixture
def held_criu() -> Iterator[Callable[[], None]]:
    """CRIU, as podman calls it."""
    yield from held(Path("/usr/local/sbin/criu"), "/usr/sbin/criu", "swrk")


def _in_memory(path: Path) -> float:
    """The share of a file that is in the kernel's page cache; mincore(2) reads nothing of it."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        size = len(mapped)
        start = ctypes.c_char.from_buffer(mapped)
        found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        libc = ctypes.CDLL(None, use_errno=True)
        status = libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), found)
        del start
        assert status == 0, os.strerror(ctypes.get_errno())
        return sum(page & 1 for page in found) / len(found)


def _drop(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_the_next_ones_image_is_read_while_the_old_one_drains() -> None:
    """By llmuxd as it is locked up in its unit."""
    configure(
        {
            OPT: {"args": ["--model", OPT, "--memory-mb", "64"], **DEVICE},
            QWEN: {"args": ["--model", QWEN], **DEVICE},
        }
    )
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    pages = max(image(OPT).iterdir(), key=lambda path: path.stat().st_size)
    assert pages.stat().st_size > 64 << 20
    assert complete(QWEN).text
    _drop(pages)
    assert _in_memory(pages) < 0.1
    client = threading.Thread(target=complete, args=(OPT,))
    with stream(QWEN, 10_000, seconds_per_token=0.02) as tokens:
        next(tokens)
        client.start()
        eventually(lambda: _in_memory(pages) == 1, "all of it was read", 60)
        assert (state(QWEN), state(OPT)) == ("draining", "checkpointed")
    client.join()


def test_the_next_one_serves_while_the_old_one_is_tidied_up(
    held_podman: Callable[[], None],
) -> None:
    models = {name: {"args": ["--model", name], **DEVICE} for name in (OPT, QWEN)}
    configure(models, {"snapshot": "pristine"})
    sh("llmuxctl", "warmup")
    assert complete(OPT).text
    held_podman()
    assert complete(QWEN).text
    assert HELD.exists() and unit(OPT, "ActiveState") == "deactivating"
    HOLD.unlink()
    eventually(lambda: state(OPT) == "checkpointed", "it has left for good")
    assert complete(OPT).text


def test_where_both_fit_the_old_one_is_there_until_the_new_one_answers(
    held_criu: Callable[[], None],
) -> None:
    configure({name: {"args": ["--model", name]} for name in (OPT, QWEN)})
    for name in (QWEN, OPT):
        assert complete(name).text
    eventually(lambda: state(QWEN) == "checkpointed", "it has left")
    held_criu()
    answers: list[str] = []
    client = threading.Thread(target=lambda: answers.append(complete(QWEN).text))
    client.start()
    eventually(HELD.exists, "the new one is being restored")
    assert (unit(OPT, "ActiveState"), unit(QWEN, "ActiveState")) == ("active", "activating")
    assert counter(OPT) == 1 and not answers
    HOLD.unlink()
    client.join()
    assert answers and answers[0]
    eventually(lambda: state(OPT) == "checkpointed", "and then it leaves")
