# SPDX-License-Identifier: MIT
"""A model that a unit of the host's own serves, in the place of a container."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmuxd import names

from .guest import (
    QWEN,
    complete,
    configure,
    counter,
    eventually,
    journal,
    sh,
    state,
    stop_everything,
)

NATIVE = "native/model"
UNIT = "fake-native.service"
ENGINE = Path(__file__).parents[1] / "images" / "fake_engine.py"
# With commands for PID 1 to start in the unit's cgroup, whatever its processes do by then.
TEXT = f"""
[Service]
ExecStart=/usr/bin/python3 -B {ENGINE} --model {NATIVE} --port 9123
ExecStop=/bin/true
ExecStopPost=/bin/true
Restart=always
RestartSec=100ms
"""


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    """The unit, as a package brings it; it does not run."""
    path = Path("/run/systemd/system") / UNIT
    path.write_text(TEXT, encoding="utf-8")
    sh("systemctl", "daemon-reload")
    own = {"engine": "unit", "unit": UNIT, "port": 9123, "tier": "park"}
    configure({NATIVE: own, QWEN: {"args": ["--model", QWEN]}})
    yield
    stop_everything()
    assert sh("systemctl", "show", "-P", "ActiveState", UNIT) == "inactive"
    path.unlink()
    sh("systemctl", "daemon-reload")


def main_process() -> int:
    return int(sh("systemctl", "show", "-P", "MainPID", UNIT))


def stopped() -> bool:
    """Whether the kernel has stopped the unit's main process."""
    stat = Path(f"/proc/{main_process()}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def prompt(*argv: str) -> None:
    """PID 1 does it without hanging."""
    begin = time.monotonic()
    sh(*argv, timeout=30)
    assert time.monotonic() - begin < 10


def test_a_request_starts_it_and_another_one_s_stops_it() -> None:
    assert complete(NATIVE).text
    assert state(NATIVE) == "serving" and main_process()
    assert complete(QWEN).text
    sh("llmuxctl", "stop", NATIVE)
    assert (state(NATIVE), main_process()) == ("cold", 0)
    assert complete(NATIVE).text


def test_it_is_parked_and_comes_back_as_it_was() -> None:
    text = complete(NATIVE).text
    main = main_process()
    assert complete(QWEN).text
    eventually(lambda: state(NATIVE) == "parked", "it is parked")
    assert stopped()
    assert complete(NATIVE).text == text
    assert main_process() == main and counter(NATIVE) == 2
    # By hand, too.
    sh("llmuxctl", "park", NATIVE)
    assert stopped()
    sh("systemctl", "reload", names.unit(NATIVE))
    eventually(lambda: state(NATIVE) == "serving" and not stopped(), "it is back")


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_a_parked_one_can_be_stopped_by_hand(verb: str) -> None:
    assert complete(NATIVE).text
    sh("llmuxctl", "park", NATIVE)
    prompt("systemctl", verb, UNIT)
    eventually(lambda: state(NATIVE) in ("failed", "cold"), "its mirror ends too")
    eventually(lambda: main_process() == 0, "and nothing runs behind llmuxd's back")
    assert f"{UNIT} ended by itself" in journal(names.unit(NATIVE))
    assert complete(NATIVE).text


def test_a_parked_one_whose_main_process_dies_hangs_nobody() -> None:
    assert complete(NATIVE).text
    sh("llmuxctl", "park", NATIVE)
    os.kill(main_process(), signal.SIGKILL)
    prompt("systemctl", "daemon-reload")
    eventually(lambda: state(NATIVE) == "failed", "its mirror ends too")
    assert complete(NATIVE).text


def test_a_helper_that_is_killed_leaves_no_stopped_unit() -> None:
    assert complete(NATIVE).text
    sh("llmuxctl", "park", NATIVE)
    os.kill(int(sh("systemctl", "show", "-P", "MainPID", names.unit(NATIVE))), signal.SIGKILL)
    eventually(lambda: state(NATIVE) == "failed", "its unit has failed")
    assert main_process() == 0
    assert complete(NATIVE).text


def test_one_that_cannot_start_is_told() -> None:
    path = Path("/run/systemd/system") / UNIT
    path.write_text(TEXT.replace("ExecStart=", "ExecStart=/nonexistent "), encoding="utf-8")
    sh("systemctl", "daemon-reload")
    answer = complete(NATIVE)
    assert answer.status == 503
    assert UNIT in json.loads(answer.body)["error"]["message"]
