# SPDX-License-Identifier: MIT
"""Models that wait in memory, and what comes of those that cannot."""

from typing import Any

from llmuxd import names

from .guest import OPT, QWEN, complete, configure, counter, eventually, journal, sh, state, unit


def _parking(**more: Any) -> None:
    """The two models; what leaves is parked."""
    configure({name: {"args": ["--model", name], "tier": "park", **more} for name in (OPT, QWEN)})


def test_models_that_park_take_turns_in_memory() -> None:
    _parking()
    texts = {model: complete(model).text for model in (OPT, QWEN)}
    for number in range(2, 5):
        for old, new in ((QWEN, OPT), (OPT, QWEN)):
            assert complete(new).text == texts[new]
            assert (state(old), unit(old, "FreezerState")) == ("parked", "frozen")
            assert counter(new) == number


def test_a_parked_model_can_be_checkpointed_and_stopped() -> None:
    _parking()
    assert complete(OPT).text
    assert complete(QWEN).text
    assert state(OPT) == "parked"
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
    assert state(OPT) == "checkpointed"
    assert "CUDA could not be suspended" in journal(names.unit(OPT))
    assert complete(OPT).text == text
    assert counter(OPT) == 2


def test_a_reload_by_hand_of_a_model_that_serves_changes_nothing() -> None:
    _parking()
    assert complete(OPT).text
    told = unit(OPT, "StatusText")
    sh("systemctl", "reload", names.unit(OPT))
    assert unit(OPT, "StatusText") == told
    assert complete(OPT).text
    assert counter(OPT) == 2


def test_a_parked_model_that_is_killed_starts_again() -> None:
    _parking()
    text = complete(OPT).text
    sh("llmuxctl", "park", OPT)
    sh("systemctl", "kill", "--signal=KILL", names.unit(OPT))
    eventually(lambda: state(OPT) == "failed", "llmuxd notices")
    assert complete(OPT).text == text
