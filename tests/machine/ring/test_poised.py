# SPDX-License-Identifier: MIT
"""The next model's unit begins to start while the old one leaves, and waits: on real systemd.

QWEN leaves for OPT, whose image is on disk, and CRIU is held in QWEN's dump.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from llmuxd import names
from llmuxd.hold import WAITING

from .guest import (
    OPT,
    QWEN,
    complete,
    configure,
    eventually,
    journal,
    record,
    sh,
    state,
    unit,
)
from .holding import HELD, HOLD, held

OTHER = "other"
UNIT = names.unit(OPT)
HOLD_OF_OPT = Path(f"/run/llmux/{names.slug(OPT)}.hold")
# One is not let in beside another where nobody knows what it takes of a device.
MODELS = {name: {"args": ["--model", name], "devices": ["/dev/null"]} for name in (OPT, QWEN)}
OTHERS = {OTHER: {"args": ["--model", OTHER], "devices": ["/dev/null"], "priority": 1}}


class Client(threading.Thread):
    """Asks for a model; `text` is the answer's. Whoever is killed answers nothing."""

    def __init__(self, name: str = OPT):
        super().__init__()
        self.name = name
        self.text = ""
        self.start()

    def run(self) -> None:
        with suppress(OSError, HTTPException, AssertionError):
            self.text = complete(self.name).text


@pytest.fixture
def held_criu() -> Iterator[Callable[[], None]]:
    yield from held(Path("/usr/local/sbin/criu"), "/usr/sbin/criu", "swrk")


@pytest.fixture
def client(held_criu: Callable[[], None]) -> Iterator[Client]:
    """Waits for OPT, which waits for QWEN."""
    configure(MODELS | OTHERS)
    for name in (OPT, QWEN):
        assert complete(name).text
    eventually(lambda: state(OPT) == "checkpointed", "it has left")
    held_criu()
    asks = Client()
    eventually(HELD.exists, "QWEN is being dumped")
    until_poised(OPT)
    yield asks
    HOLD.unlink(missing_ok=True)
    asks.join()


def until_poised(name: str) -> None:
    eventually(lambda: unit(name, "StatusText") == WAITING, f"{name} waits for its place")
    assert unit(name, "ActiveState") == "activating"


def until_it_is_back() -> None:
    eventually(lambda: unit(OPT, "ActiveState") == "inactive", "it has ended")
    assert unit(OPT, "Result") == "success"
    eventually(lambda: not HOLD_OF_OPT.exists(), "nothing holds it")


def processes(name: str) -> int:
    """How many there are in the model's unit: its helper alone, where nothing of it runs."""
    place = Path("/sys/fs/cgroup" + unit(name, "ControlGroup"))
    return sum(len(each.read_text().split()) for each in place.rglob("cgroup.procs"))


def test_the_next_one_waits_while_the_old_one_leaves(client: Client) -> None:
    assert unit(QWEN, "ActiveState") == "deactivating"
    assert state(OPT) == "checkpointed" and processes(OPT) == 1
    assert not Path(f"/run/llmux/{names.slug(OPT)}.place.json").exists()
    helper = Path("/proc", unit(OPT, "ExecMainPID"))
    released = time.time()
    HOLD.unlink()
    client.join()
    assert client.text and state(OPT) == "serving" and helper.exists()
    # What it waited is no part of its way in.
    move = json.loads(Path(f"/run/llmux/{names.slug(OPT)}.in.json").read_text())
    assert move["ended"] - move["seconds"] > released


def test_a_llmuxd_that_is_killed_leaves_nothing_of_it(client: Client) -> None:
    told = record(OPT)
    sh("systemctl", "kill", "--kill-whom=main", "-s", "KILL", "llmuxd.service")
    client.join()
    until_it_is_back()
    assert unit(QWEN, "ActiveState") == "deactivating"
    assert "not started: llmuxd" in journal(UNIT)
    eventually(lambda: state(OPT) == "checkpointed", "the next llmuxd is there")
    again = Client()
    HOLD.unlink()
    again.join()
    assert again.text
    assert record(OPT)["taken_at"] == told["taken_at"]
    assert state(OPT) == "serving"


def test_who_loses_the_place_waits_no_more(client: Client) -> None:
    other = Client(OTHER)
    until_it_is_back()
    until_poised(OTHER)
    assert state(OPT) == "checkpointed"
    HOLD.unlink()
    for each in (other, client):
        each.join()
        assert each.text


def test_stopped_by_hand_it_is_started_anew(client: Client) -> None:
    """At once, and waits again, or once its place is free."""
    invocation = unit(OPT, "InvocationID")
    sh("systemctl", "stop", UNIT)
    assert unit(OPT, "Result") == "success"
    eventually(lambda: state(OPT) == "checkpointed", "nobody takes it for one on its way")
    HOLD.unlink()
    client.join()
    assert client.text and unit(OPT, "InvocationID") != invocation


def test_a_start_by_hand_is_the_same_job_and_goes_on_with_it(client: Client) -> None:
    before = unit(OPT, "Job")
    sh("systemctl", "start", "--no-block", UNIT)
    assert before != "0" and unit(OPT, "Job") == before
    starts = threading.Thread(target=lambda: sh("systemctl", "start", UNIT))
    starts.start()
    assert processes(OPT) == 1 and unit(QWEN, "ActiveState") == "deactivating"
    HOLD.unlink()
    starts.join()
    client.join()
    assert client.text and unit(OPT, "ActiveState") == "active"


def test_a_helper_that_dies_meanwhile_is_no_failed_start(client: Client) -> None:
    sh("systemctl", "kill", "--kill-whom=main", "-s", "KILL", UNIT)
    eventually(lambda: unit(OPT, "ActiveState") == "failed", "it is seen")
    HOLD.unlink()
    client.join()
    assert client.text and "DiedAlone" not in journal(UNIT)
