# SPDX-License-Identifier: MIT
"""Operators who know systemctl and not llmuxd, and llmuxd restarted under load."""

import json
import signal
import subprocess
import threading
from pathlib import Path

from llmuxd import names

from .guest import (
    CONFIG,
    FAKE,
    OPT,
    QWEN,
    Answer,
    complete,
    counter,
    eventually,
    fails,
    journal,
    sh,
    state,
    stream,
    two_fakes,
    unit,
)


def test_start_status_and_stop_by_systemctl() -> None:
    two_fakes()
    sh("systemctl", "start", names.unit(OPT))
    eventually(lambda: state(OPT) == "serving", "llmuxd notices the start")
    assert "conmon" in sh("systemctl", "status", "--no-pager", names.unit(OPT))
    assert complete(OPT).text
    assert counter(OPT) == 1
    sh("systemctl", "stop", names.unit(OPT))
    eventually(lambda: state(OPT) == "checkpointed", "llmuxd notices the stop")
    assert unit(OPT, "Result") == "success"
    assert complete(OPT).text
    assert counter(OPT) == 2


def test_freeze_and_thaw_by_systemctl() -> None:
    two_fakes()
    assert complete(OPT).text
    sh("systemctl", "freeze", names.unit(OPT))
    eventually(lambda: state(OPT) == "parked", "llmuxd notices the freeze")
    sh("systemctl", "thaw", names.unit(OPT))
    eventually(lambda: state(OPT) == "serving", "llmuxd notices the thaw")
    assert complete(OPT).text


def test_everything_of_a_model_is_in_its_unit() -> None:
    two_fakes()
    for _ in range(2):  # after a cold start, and after a restore
        assert complete(OPT).text
        group = unit(OPT, "ControlGroup")
        for pid in sh("podman", "inspect", "--format", "{{.State.Pid}} {{.State.ConmonPid}}",
                      names.container(OPT)).split():  # fmt: skip
            with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
                assert group in file.read()
        assert unit(OPT, "MainPID") == pid
        assert "fake engine" in journal(names.unit(OPT))
        sh("llmuxctl", "checkpoint", OPT)


def test_a_restart_lets_the_stream_end_and_the_model_go_on() -> None:
    two_fakes()
    assert complete(OPT).text
    pid = unit(OPT, "MainPID")
    with stream(OPT, 40, seconds_per_token=0.05) as tokens:
        next(tokens)
        restart = subprocess.Popen(["systemctl", "restart", "llmuxd.service"])
        eventually(
            lambda: sh("systemctl", "show", "-P", "SubState", "llmuxd.service") == "stop-sigterm",
            "llmuxd is on its way out",
        )
        late: list[Answer] = []
        waits = threading.Thread(target=lambda: late.append(complete(OPT)))
        waits.start()  # in the socket, until the next llmuxd takes it
        rest = list(tokens)
    assert rest[-1] == "[DONE]" and len(rest) >= 40
    assert restart.wait(60) == 0
    waits.join(60)
    assert late[0].text
    assert unit(OPT, "MainPID") == pid
    assert counter(OPT) == 3


def test_a_killed_llmuxd_comes_back_and_adopts() -> None:
    two_fakes()
    assert complete(OPT).text
    pid = unit(OPT, "MainPID")
    sh("systemctl", "kill", "--kill-whom=main", f"--signal={signal.SIGKILL}", "llmuxd.service")
    assert complete(OPT).text
    assert state(OPT) == "serving"
    assert unit(OPT, "MainPID") == pid


def test_a_model_that_was_removed_from_the_configuration_leaves() -> None:
    two_fakes()
    assert complete(OPT).text
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    del config["models"][OPT]
    CONFIG.write_text(json.dumps(config), encoding="utf-8")
    sh("systemctl", "reload", "llmuxd.service")
    eventually(lambda: complete(OPT).status == 404, "the model is gone")
    eventually(lambda: unit(OPT, "ActiveState") == "inactive", "its unit is stopped")
    assert complete(QWEN).text


def test_a_wrong_configuration_leaves_the_running_one() -> None:
    two_fakes()
    good = CONFIG.read_text(encoding="utf-8")
    CONFIG.write_text("models:\n  a:\n    imagee: x\n", encoding="utf-8")
    status, said = fails("busctl", "call", "org.llmux", "/Manager", "org.llmux.Manager", "Reload")
    assert "llmux.yaml:3:5: unknown key 'imagee'" in said and "did you mean 'image'?" in said
    assert fails("llmuxd", "--check-config")[0] == 2
    # Not only what runs already: a start takes what was accepted, not what the file says.
    assert complete(OPT).text
    assert complete(QWEN).text
    CONFIG.write_text(good, encoding="utf-8")
    assert complete(OPT).text


def test_a_request_waits_for_a_configuration_that_is_mended() -> None:
    two_fakes()
    sh("systemctl", "stop", "llmuxd.service")
    good = CONFIG.read_text(encoding="utf-8")
    CONFIG.write_text("models: [", encoding="utf-8")
    answers: list[Answer] = []
    client = threading.Thread(target=lambda: answers.append(complete(OPT)))
    client.start()
    eventually(lambda: f"{CONFIG}:2:1" in journal("llmuxd.service"), "llmuxd says what is wrong")
    CONFIG.write_text(good, encoding="utf-8")
    client.join(timeout=60)
    assert answers and answers[0].text


def test_a_unit_restarted_by_hand_goes_on() -> None:
    two_fakes()
    assert complete(OPT).text
    sh("systemctl", "restart", names.unit(OPT))
    assert complete(OPT).text
    assert counter(OPT) == 2


def test_the_bus_is_restarted() -> None:
    two_fakes()
    assert complete(OPT).text
    sh("systemctl", "restart", "dbus-broker.service")
    assert complete(OPT).text
    eventually(
        lambda: subprocess.run(["llmuxctl", "status"], capture_output=True).returncode == 0,
        "llmuxd is on the new bus",
    )
    assert complete(QWEN).text
    eventually(lambda: state(OPT) == "checkpointed", "it has left")


def test_others_may_look_and_not_touch() -> None:
    two_fakes()
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert OPT in sh(*nobody, "llmuxctl", "status")
    for method in ("Switch", "Checkpoint", "Park", "Warmup", "Tune", "Stop"):
        _, said = fails(
            *nobody, "busctl", "call", "org.llmux", "/Manager", "org.llmux.Manager", method, "s",
            OPT,
        )  # fmt: skip
        assert "authenticate" in said, said
    assert state(OPT) == "cold"


def test_llmuxd_by_hand_with_a_file_and_a_port_of_its_own(tmp_path: Path) -> None:
    two_fakes()
    sh("systemctl", "stop", "llmuxd.socket", "llmuxd.service")
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        json.dumps(
            {"models": {"mine": {"image": FAKE, "devices": [], "args": ["--model", "mine"]}}}
        )
    )
    said = sh("llmuxd", "--check-config", "-c", str(mine))
    assert said == f"{mine}: good, 1 models"
    with subprocess.Popen(["timeout", "60", "llmuxd", "-c", str(mine), "-p", "4001"]) as daemon:
        # Not over the bus: a call to its name would have the bus start llmuxd.service.
        eventually(lambda: sh("ss", "-Hltn", "sport = 4001"), "it listens")
        assert "mine" in sh("llmuxctl", "status")
        answer = sh("curl", "-sS", "http://127.0.0.1:4001/v1/completions", "-d",
                    '{"model": "mine", "prompt": "x"}')  # fmt: skip
        assert json.loads(answer)["model"] == "mine"
        daemon.terminate()
        assert daemon.wait(30) == 0
    sh("systemctl", "stop", names.unit("mine"))


def test_a_hung_llmuxd_is_restarted_by_its_watchdog() -> None:
    two_fakes()
    assert complete(OPT).text
    pid = sh("systemctl", "show", "-P", "MainPID", "llmuxd.service")
    sh("kill", "-STOP", pid)
    assert complete(OPT).text  # waits in the socket for the next one
    assert sh("systemctl", "show", "-P", "MainPID", "llmuxd.service") != pid
    assert "watchdog" in journal("llmuxd.service").lower()
    assert counter(OPT) == 2
    assert f"serving: {OPT}" in sh("systemctl", "show", "-P", "StatusText", "llmuxd.service")


def test_a_model_that_was_removed_while_llmuxd_was_down_leaves() -> None:
    two_fakes()
    assert complete(OPT).text
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    del config["models"][OPT]
    CONFIG.write_text(json.dumps(config), encoding="utf-8")
    sh("systemctl", "restart", "llmuxd.service")
    eventually(lambda: unit(OPT, "ActiveState") == "inactive", "its unit is stopped")
    assert complete(QWEN).text


def _moving() -> bool:
    return bool({state(OPT), state(QWEN)} & {"draining", "starting"})


def test_systemd_that_executes_itself_anew_in_mid_switch_loses_nothing() -> None:
    """As each update of systemd has it do; what it has to say meanwhile nobody hears."""
    two_fakes(snapshot="pristine")
    sh("llmuxctl", "warmup")
    for number in range(8):
        new = (OPT, QWEN)[number % 2]
        with subprocess.Popen(
            ["curl", "-sSf", "http://127.0.0.1:4000/v1/completions", "-d",
             json.dumps({"model": new, "prompt": "Hi", "max_tokens": 3})],
            stdout=subprocess.PIPE,
        ) as client:  # fmt: skip
            eventually(_moving, "the switch")
            sh("systemctl", "daemon-reexec")
            out, _ = client.communicate(timeout=60)
        assert json.loads(out)["choices"][0]["text"]
        assert state(new) == "serving"
