# SPDX-License-Identifier: MIT
"""What a model best lets go of, measured: the engine is a stand-in that makes one way the best.

So is the driver: no process uses CUDA by it, and so none has to be suspended.
"""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from llmuxd import names

from ..libraries import CUDA
from .guest import (
    CONFIG,
    OPT,
    QWEN,
    TUNINGS,
    Json,
    complete,
    configure,
    eventually,
    journal,
    record,
    report,
    sh,
    state,
    stop_everything,
    unit,
)

DROP_IN = Path("/run/systemd/system/llmux-model@.service.d/driver.conf")
FAKE_CUDA = Path("/run/fake-cuda")
# A token takes its time, the first one after a good sleep does not.
ENGINE = ("--seconds-per-token", "0.5")


@pytest.fixture(autouse=True)
def driver() -> Iterator[None]:
    """A host with a libcuda."""
    assert CUDA.there.stat().st_size, "the host that booted this machine has no C compiler"
    FAKE_CUDA.mkdir(exist_ok=True)
    DROP_IN.parent.mkdir(exist_ok=True)
    environment = f"LD_LIBRARY_PATH={CUDA.there.parent} FAKE_CUDA={FAKE_CUDA}"
    DROP_IN.write_text(f"[Service]\nEnvironment={environment}\n", encoding="ascii")
    sh("systemctl", "daemon-reload")
    yield
    stop_everything()
    DROP_IN.unlink()
    DROP_IN.parent.rmdir()
    sh("systemctl", "daemon-reload")


def _configure(*engine: str, **more: object) -> None:
    """The first is a vLLM with a device, which behaves like this; the second is in its way."""
    common = {"snapshot": "pristine", "engine": "vllm", **more}
    args = ["--model", OPT, *ENGINE, *engine]
    configure(
        {
            OPT: {"args": args, "devices": ["/dev/null"], **common},
            QWEN: {"args": ["--model", QWEN], **common},
        }
    )


def _made() -> Json:
    loaded: Json = json.loads((TUNINGS / f"{names.slug(OPT)}.json").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize(("slow", "best"), [("1", "2"), ("2", "1")])
def test_the_way_that_is_back_soonest_is_chosen_and_used(slow: str, best: str) -> None:
    # By more than a host that is busy with others makes of it.
    _configure(f"--first-after-{slow}", "4", "--seconds-per-token", "2")
    said = sh("llmuxctl", "warmup", "--tune", OPT, timeout=300).splitlines()
    assert said[-1] == f"{OPT}: image_sleep {best} (tuned), park_sleep {best} (tuned)", said
    rows = [line.split() for line in said[2:-1]]
    assert [row[:2] for row in rows] == [
        ["image_sleep", "2"], ["park_sleep", "2"], ["image_sleep", "off"], ["park_sleep", "off"],
        ["image_sleep", "1"], ["park_sleep", "1"],
    ]  # fmt: skip
    made = _made()
    assert made["chosen"] == {"checkpoint": best, "park": best}
    assert made["identity"] == record(OPT)["identity"]
    # As the record of the lasting image says, and as its server, which slept but once, knows.
    assert (record(OPT)["sleep"], record(OPT)["trial"]) == (best, False)
    sh("llmuxctl", "switch", OPT)
    assert report(OPT)["slept"] == [int(best)]
    sh("llmuxctl", "park", OPT)
    sh("llmuxctl", "switch", OPT)
    assert report(OPT)["slept"] == [int(best)] * 2
    assert f"image_sleep {best} (tuned)" in sh("llmuxctl", "show", OPT)
    assert complete(OPT, max_tokens=1).text


def test_a_way_that_comes_back_as_another_is_out_and_the_next_best_is_chosen() -> None:
    _configure("--wrong-after", "2", "--start-delay", "0.5")
    found = json.loads(sh("llmuxctl", "warmup", "--tune", "--json", OPT, timeout=300))[0]
    assert [each["value"] for each in found["letting_go"]] == ["1", "1"]
    failed = {each["key"]: each["failed"] for each in found["measured"] if each["failed"]}
    assert {each["value"] for each in found["measured"] if each["failed"]} == {"2"}
    assert "its canary says" in failed["image_sleep"], failed
    assert "its canary says" in failed["park_sleep"], failed
    assert complete(OPT, max_tokens=1).text


def test_an_image_is_restored_as_it_was_taken_whatever_is_chosen_by_then() -> None:
    """It was taken at level 2, and the record says since that level 1 is better."""
    _configure()
    sh("llmuxctl", "warmup", OPT)
    told = record(OPT)
    assert told["sleep"] == "2"
    made = {"model": OPT, "identity": told["identity"], "made_at": 1.0,
            "chosen": {"checkpoint": "1", "park": "2"}}  # fmt: skip
    TUNINGS.mkdir(exist_ok=True)
    (TUNINGS / f"{names.slug(OPT)}.json").write_text(json.dumps(made), encoding="utf-8")
    assert complete(OPT, max_tokens=1).text
    assert report(OPT)["slept"] == [2] and not report(OPT)["asleep"]
    assert "restore" in unit(OPT, "StatusText")
    sh("llmuxctl", "checkpoint", OPT)
    assert record(OPT) == told
    sh("llmuxctl", "switch", OPT)
    sh("llmuxctl", "stop", OPT)
    sh("llmuxctl", "warmup", OPT)
    assert record(OPT)["sleep"] == "1"
    assert complete(OPT, max_tokens=1).text


@pytest.mark.parametrize("step", ["image_sleep 2, 2", "park_sleep off, 1"])
def test_one_that_is_cancelled_leaves_nothing_half(step: str) -> None:
    _configure()
    with subprocess.Popen(["llmuxctl", "warmup", "--tune", OPT]) as tune:
        eventually(lambda: step in sh("llmuxctl", "jobs"), f"it is at {step}")
        sh("llmuxctl", "cancel", "1")
        assert tune.wait(60) == 130
    assert not list(TUNINGS.glob("*.json"))
    assert complete(OPT, max_tokens=1).text
    assert complete(QWEN).text
    eventually(lambda: state(OPT) == "checkpointed", "it has left")
    assert (record(OPT)["sleep"], record(OPT)["trial"]) == ("2", False)
    assert complete(OPT, max_tokens=1).text


@pytest.mark.parametrize("step", ["image_sleep 2, 2", "park_sleep off, 1"])
def test_a_stop_ends_it_and_the_model_stays_stopped(step: str) -> None:
    _configure()
    with subprocess.Popen(
        ["llmuxctl", "warmup", "--tune", OPT], text=True, stdout=PIPE, stderr=PIPE
    ) as tune:
        eventually(lambda: step in sh("llmuxctl", "jobs"), f"it is at {step}")
        sh("llmuxctl", "stop", OPT)
        told, why = tune.communicate(timeout=60)
    assert tune.returncode == 1 and "was stopped while it was tuned" in why.splitlines()[-1]
    rows = [line.split()[:2] for line in told.splitlines()[1:]]
    assert rows == [["image_sleep", "2"], ["park_sleep", "2"], ["image_sleep", "off"]][: len(rows)]
    assert len(rows) == (0 if step.startswith("image") else 3)
    assert complete(QWEN).text
    assert state(OPT) in ("cold", "checkpointed")
    assert unit(OPT, "ActiveState") == "inactive"
    assert not list(TUNINGS.glob("*.json"))
    assert complete(OPT, max_tokens=1).text


def test_ctrl_c_cancels_it_where_nobody_can_be_asked() -> None:
    _configure()
    with subprocess.Popen(["llmuxctl", "warmup", "--tune", OPT]) as tune:
        eventually(lambda: "image_sleep 2, 1" in sh("llmuxctl", "jobs"), "it is under way")
        tune.send_signal(signal.SIGINT)
        assert tune.wait(60) == 130
    assert sh("llmuxctl", "jobs") == "no jobs"
    assert not list(TUNINGS.glob("*.json"))
    assert complete(OPT, max_tokens=1).text


def test_a_live_model_that_does_not_wake_keeps_what_it_had_come_to() -> None:
    """Its memory is that of before the measurement, whichever way of parking failed."""
    _configure("--wrong-after", "2", snapshot="live")
    for _ in range(3):
        assert complete(OPT, max_tokens=1).text
    before = report(OPT)
    said = sh("llmuxctl", "warmup", "--tune", OPT, timeout=300).splitlines()
    row = next(line for line in said if line.startswith("park_sleep  2"))
    assert "its canary says" in row, said
    assert state(OPT) == "checkpointed" and record(OPT)["live"]
    assert complete(OPT, max_tokens=1).text
    after = report(OPT)
    assert after["instance"] == before["instance"] and after["counter"] > before["counter"]
    assert "goes back to what it was" in journal(names.unit(OPT))


def test_a_reload_in_the_middle_that_changes_the_model_fails_it() -> None:
    _configure()
    with subprocess.Popen(
        ["llmuxctl", "warmup", "--tune", OPT], text=True, stdout=PIPE, stderr=PIPE
    ) as tune:
        eventually(lambda: "park_sleep 2, 1" in sh("llmuxctl", "jobs"), "it is under way")
        CONFIG.write_text(CONFIG.read_text().replace('"0.5"', '"0.4"'))
        sh("llmuxctl", "reload")
        _, why = tune.communicate(timeout=300)
    assert tune.returncode == 1 and "became another" in why
    assert not list(TUNINGS.glob("*.json"))
    assert complete(OPT, max_tokens=1).text


def test_clients_of_both_are_served_meanwhile() -> None:
    _configure()
    with subprocess.Popen(["llmuxctl", "warmup", "--tune", OPT]) as tune:
        eventually(lambda: "image_sleep 2, 2" in sh("llmuxctl", "jobs"), "it is under way")
        for model in (OPT, QWEN, OPT, QWEN):
            assert complete(model, max_tokens=1).text
            assert tune.poll() is None
        assert tune.wait(300) == 0
    assert {each["rounds"] for each in _made()["figures"]} <= {1, 3}
    assert state(OPT) == "checkpointed"
