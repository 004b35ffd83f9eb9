# SPDX-License-Identifier: MIT
"""The journal by fields, and what journalctl -x says beside a message."""

import json
from typing import Any

from llmuxd import names
from llmuxd.events import Event

from .guest import OPT, QWEN, configure, eventually, fails, sh, since, two_fakes


def entries(*matches: str) -> list[dict[str, Any]]:
    """What the journal has for these since the test began."""
    sh("journalctl", "--sync")
    told = sh("journalctl", since(), "--output=json", *matches)
    return [json.loads(line) for line in told.splitlines()]


def events(model: str) -> list[tuple[str, str]]:
    """What happened to a model, and in which unit it was told."""
    known = {event.value: event.name for event in Event}
    return [
        (known[entry["MESSAGE_ID"]], entry["_SYSTEMD_UNIT"])
        for entry in entries(f"LLMUX_MODEL={model}")
        if entry.get("MESSAGE_ID") in known
    ]


def test_a_models_name_finds_all_that_is_said_of_it() -> None:
    name = "journal/of one-model"
    configure({name: {"args": ["--model", name]}})
    sh("llmuxctl", "switch", name)
    sh("llmuxctl", "checkpoint", name)
    sh("llmuxctl", "switch", name)
    unit = names.unit(name)
    told = [
        ("MODEL_COLD_START", unit), ("MODEL_SERVES", unit), ("JOB_ENDED", "llmuxd.service"),
        ("CHECKPOINT_WRITTEN", unit), ("JOB_ENDED", "llmuxd.service"),
        ("MODEL_SERVES", unit), ("JOB_ENDED", "llmuxd.service"),
    ]  # fmt: skip
    # The helper and llmuxd are two processes: which of them is read first is journald's affair.
    eventually(lambda: sorted(events(name)) == sorted(told), "the journal has all of it")
    serves = entries(f"LLMUX_MODEL={name}", f"MESSAGE_ID={Event.MODEL_SERVES.value}")
    assert [each["LLMUX_PHASE"] for each in serves] == ["cold", "restore"]
    assert all(0 < float(each["LLMUX_SECONDS"]) < 100 for each in serves)
    ended = entries(f"LLMUX_MODEL={name}", f"MESSAGE_ID={Event.JOB_ENDED.value}")
    assert [each["LLMUX_PHASE"] for each in ended] == ["switch", "checkpoint", "switch"]
    assert all(int(each["LLMUX_JOB"]) > 0 for each in ended)
    # What the server itself prints carries the name as well.
    assert [each for each in entries(f"LLMUX_MODEL={name}") if each.get("CONTAINER_NAME")]


def test_journalctl_explains() -> None:
    two_fakes()
    sh("llmuxctl", "switch", OPT)
    told = sh("journalctl", since(), "--catalog", f"MESSAGE_ID={Event.MODEL_SERVES.value}")
    assert f"Subject: The model {OPT} serves" in told
    assert "Its server is healthy. It took" in told


def test_a_start_that_fails_says_what_to_do() -> None:
    configure({QWEN: {"image": "localhost/no-such-image"}})
    fails("llmuxctl", "switch", QWEN)
    match = f"MESSAGE_ID={Event.MODEL_START_FAILED.value}"
    told = sh("journalctl", since(), "--catalog", f"LLMUX_MODEL={QWEN}", match)
    assert f"'llmuxctl switch {QWEN}' tries at" in told
    assert "JOB_FAILED" in [name for name, _ in events(QWEN)]
