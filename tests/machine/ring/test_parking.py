# SPDX-License-Identifier: MIT
"""Models that wait in memory, and what comes of those that cannot."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from llmuxd import names
from llmuxd.model import cgroup
from llmuxd.model.activation import Leave, order_leave

from .guest import (
    OPT,
    QWEN,
    complete,
    configure,
    container_frozen,
    counter,
    eventually,
    image,
    journal,
    record,
    sh,
    state,
    unit,
)


def _parking(**more: Any) -> None:
    """The two models; what leaves is parked."""
    configure({name: {"args": ["--model", name], "tier": "park", **more} for name in (OPT, QWEN)})


def _activated_by(model: str) -> str:
    path = names.object_path(model)
    line = sh("busctl", "get-property", "org.llmux", path, "org.llmux.Model", "ActivatedBy")
    return line.split('"')[1]


def test_models_that_park_take_turns_in_memory() -> None:
    _parking()
    texts = {model: complete(model).text for model in (OPT, QWEN)}
    for number in range(2, 5):
        for old, new in ((QWEN, OPT), (OPT, QWEN)):
            assert complete(new).text == texts[new]
            eventually(lambda old=old: state(old) == "parked", "it has left")  # type: ignore[misc]
            assert container_frozen(old)
            assert counter(new) == number
            assert _activated_by(new) == "resume"


def test_a_parked_model_can_be_checkpointed_and_stopped() -> None:
    _parking()
    assert complete(OPT).text
    assert complete(QWEN).text
    eventually(lambda: state(OPT) == "parked", "it has left")
    sh("llmuxctl", "checkpoint", OPT)
    assert state(OPT) == "checkpointed"
    sh("llmuxctl", "park", QWEN)
    sh("llmuxctl", "stop", QWEN)
    assert state(QWEN) == "cold"
    assert complete(OPT).text
    assert counter(OPT) == 2


def test_a_model_that_cannot_leave_its_gpu_parked_is_checkpointed() -> None:
    """There is no driver here: to the helper the device is one that it cannot suspend."""
    _parking(devices=["/dev/null"])
    text = complete(OPT).text
    assert complete(QWEN).text
    eventually(lambda: state(OPT) == "checkpointed", "it has left")
    assert "libcuda.so.1" in journal(names.unit(OPT))
    assert complete(OPT).text == text
    assert counter(OPT) == 2


def test_a_model_that_came_back_as_another_serves_nobody() -> None:
    _parking(engine="vllm", snapshot="pristine")
    sh("llmuxctl", "warmup", OPT)
    text = complete(OPT).text
    sh("llmuxctl", "park", OPT)
    sh("llmuxctl", "switch", OPT)
    assert _activated_by(OPT) == "resume"
    sh("llmuxctl", "park", OPT)
    parked = Path(f"/run/llmux/{names.slug(OPT)}.parked.json")
    told = json.loads(parked.read_text())
    assert json.loads(told["canary"])["text"]
    parked.write_text(json.dumps(told | {"canary": '{"text": "!!!!"}'}))
    directory = image(OPT)
    assert complete(OPT).text == text
    # The one request, of the server that was started anew.
    assert counter(OPT) == 1 and _activated_by(OPT) == "cold"
    assert not directory.exists() and record(OPT)["invalid"]
    assert "its canary says" in journal(names.unit(OPT))


def test_a_reload_by_hand_of_a_model_that_serves_changes_nothing() -> None:
    _parking()
    assert complete(OPT).text
    told = unit(OPT, "StatusText")
    sh("systemctl", "reload", names.unit(OPT))
    assert unit(OPT, "StatusText") == told
    assert complete(OPT).text
    assert counter(OPT) == 2


def test_a_reload_by_hand_wakes_a_parked_model() -> None:
    _parking()
    assert complete(OPT).text
    sh("llmuxctl", "park", OPT)
    sh("systemctl", "reload", names.unit(OPT))
    eventually(lambda: state(OPT) == "serving", "llmuxd notices")
    assert complete(OPT).text
    assert counter(OPT) == 2


@pytest.mark.parametrize("who", ["all", "main", "init", "server"])
def test_a_parked_model_that_is_killed_starts_again(who: str) -> None:
    """As the OOM killer does. PID 1 hangs when this happens to a unit that is frozen itself.

    Behind an init the server is not the container's first process, which is frozen, and hears of
    nothing.
    """
    _parking(podman_args=["--init"])
    text = complete(OPT).text
    sh("llmuxctl", "park", OPT)
    first = int(sh("podman", "inspect", "--format", "{{.State.Pid}}", names.container(OPT)))
    payload = cgroup.of_process(first)
    assert payload is not None
    _, server = cgroup.family(first, payload)
    if who in ("init", "server"):
        os.kill(first if who == "init" else server, signal.SIGKILL)
    else:
        sh("systemctl", "kill", "--signal=KILL", f"--kill-whom={who}", names.unit(OPT))
    eventually(lambda: state(OPT) == "failed", "llmuxd notices")
    assert complete(OPT).text == text
    assert sh("systemctl", "is-system-running", check=False) != ""


def test_a_parked_model_is_stopped_by_hand_as_any_other() -> None:
    _parking()
    assert complete(OPT).text
    sh("llmuxctl", "park", OPT)
    sh("systemctl", "stop", names.unit(OPT))
    eventually(lambda: state(OPT) == "checkpointed", "llmuxd notices")
    assert complete(OPT).text
    assert counter(OPT) == 2


def test_a_parked_model_that_may_not_be_dumped_keeps_the_image_that_it_has() -> None:
    _parking()
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    for _ in range(2):
        assert complete(OPT).text
    sh("llmuxctl", "park", OPT)
    order_leave(OPT, Leave.END)
    sh("systemctl", "stop", names.unit(OPT))
    assert "goes back to what it was at its last checkpoint" in journal(names.unit(OPT))
    eventually(lambda: state(OPT) == "checkpointed", "llmuxd notices")
    assert complete(OPT).text
    assert counter(OPT) == 2
    # One that has none is just ended.
    assert complete(QWEN).text
    order_leave(QWEN, Leave.END)
    sh("systemctl", "stop", names.unit(QWEN))
    assert state(QWEN) == "cold"


def test_a_parked_model_outlives_llmuxd() -> None:
    _parking()
    assert complete(OPT).text
    sh("llmuxctl", "park", OPT)
    sh("systemctl", "kill", "--signal=KILL", "llmuxd.service")
    sh("systemctl", "restart", "llmuxd.service")
    assert state(OPT) == "parked" and container_frozen(OPT)
    assert complete(OPT).text
    assert counter(OPT) == 2
