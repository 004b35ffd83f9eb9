# SPDX-License-Identifier: MIT
"""Two models, one endpoint, switched by checkpoints."""

import json
import subprocess
from pathlib import Path

import pytest

from llmuxd import names

from .guest import (
    OPT,
    QWEN,
    complete,
    configure,
    container_frozen,
    counter,
    eventually,
    journal,
    post,
    sh,
    state,
    stream,
    two_fakes,
    unit,
)


def test_warmup_leaves_each_model_checkpointed() -> None:
    two_fakes()
    sh("llmuxctl", "warmup")
    assert [state(OPT), state(QWEN)] == ["checkpointed", "checkpointed"]
    assert sh("podman", "ps", "-q") == ""


def test_a_request_starts_llmuxd_and_restores_the_model() -> None:
    two_fakes()
    sh("llmuxctl", "warmup")
    sh("systemctl", "stop", "llmuxd.service")
    answer = sh(
        "curl", "-sS", "http://localhost:4000/v1/completions",
        "-H", "Content-Type: application/json",
        "-d", '{"model":"facebook/opt-125m","prompt":"Hello","max_tokens":10}',
    )  # fmt: skip
    assert json.loads(answer)["choices"][0]["text"]
    assert "serving after" in journal(names.unit(OPT))
    assert sh("busctl", "get-property", "org.llmux", names.object_path(OPT), "org.llmux.Model",
              "ActivatedBy") == 's "restore"'  # fmt: skip


def test_a_switch_back_and_forth_keeps_the_servers_memory() -> None:
    two_fakes()
    first = complete(OPT).text
    assert complete("qwen").text
    eventually(lambda: [state(OPT), state(QWEN)] == ["checkpointed", "serving"], "one has left")
    assert complete(OPT).text == first
    assert counter(OPT) == 2
    assert complete(QWEN).text
    assert counter(QWEN) == 2


def test_a_switch_waits_for_the_stream_that_runs() -> None:
    two_fakes()
    assert complete(OPT).text
    with stream(OPT, 40, seconds_per_token=0.05) as tokens:
        next(tokens)
        other = subprocess.Popen(
            ["curl", "-sS", "-f", "http://127.0.0.1:4000/v1/completions", "-d",
             json.dumps({"model": QWEN, "prompt": "Hi", "max_tokens": 3})],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        eventually(lambda: state(OPT) == "draining", "the first model drains")
        rest = list(tokens)
    assert rest[-1] == "[DONE]" and len(rest) >= 40
    out, _ = other.communicate(timeout=60)
    assert json.loads(out)["choices"][0]["text"]


def test_a_stream_comes_as_it_is_made() -> None:
    two_fakes()
    with stream(QWEN, 5, seconds_per_token=0.05) as tokens:
        chunks = list(tokens)
    assert chunks[-1] == "[DONE]" and len(chunks) >= 6


def test_switch_and_checkpoint_by_busctl() -> None:
    two_fakes()
    manager = ("busctl", "call", "org.llmux", "/Manager", "org.llmux.Manager")
    assert sh(*manager, "Switch", "s", QWEN).startswith('o "/Job/')
    eventually(lambda: state(QWEN) == "serving", "the switch by hand")
    assert sh(*manager, "Checkpoint", "s", QWEN).startswith('o "/Job/')
    eventually(lambda: state(QWEN) == "checkpointed", "the checkpoint by hand")


def test_busctl_sees_jobs_begin_and_end() -> None:
    two_fakes()
    with subprocess.Popen(
        ["busctl", "monitor", "--json=short", "org.llmux"], stdout=subprocess.PIPE, text=True
    ) as monitor:
        assert monitor.stdout is not None
        sh("llmuxctl", "switch", OPT)
        seen: dict[str, list[object]] = {}
        for line in monitor.stdout:
            message = json.loads(line)
            # systemd's own jobs pass by on the same bus.
            if message.get("interface") == "org.llmux.Manager" and message["type"] == "signal":
                seen[message["member"]] = message["payload"]["data"]
            if "JobRemoved" in seen:
                break
        monitor.terminate()
    number, path, model, result = seen["JobRemoved"]
    assert (model, result) == (OPT, "done")
    assert seen["JobNew"] == [number, path, model]


def test_park_freezes_and_a_request_thaws() -> None:
    two_fakes()
    text = complete(OPT).text
    sh("llmuxctl", "park", OPT)
    assert state(OPT) == "parked"
    assert container_frozen(OPT)
    assert (unit(OPT, "ActiveState"), unit(OPT, "StatusText")) == ("active", "parked")
    assert complete(OPT).text == text
    assert counter(OPT) == 2


def test_stop_leaves_no_checkpoint() -> None:
    two_fakes()
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    assert state(OPT) == "checkpointed"
    sh("llmuxctl", "switch", OPT)
    sh("llmuxctl", "stop", OPT)
    assert state(OPT) == "cold"


def test_models_list_and_an_alias() -> None:
    two_fakes()
    listed = json.loads(sh("curl", "-sS", "http://localhost:4000/v1/models"))
    assert {entry["id"] for entry in listed["data"]} == {OPT, QWEN, "qwen"}
    assert post("/v1/completions", {"model": "qwen", "prompt": "x"}).json["model"] == QWEN


@pytest.mark.parametrize(
    "name",
    [
        "/models/x",
        "a b",
        "Modèle/№ 1",
        ".hidden",
        "x--y__z",
        "50%i $HOME \\x2d",
        "UPPER.Case-7B:Q4",
    ],
)
def test_any_name_works_as_a_unit(name: str) -> None:
    configure({name: {"args": ["--model", name]}})
    assert complete(name).json["model"] == name
    assert sh("systemctl", "is-active", names.unit(name)) == "active"
    escaped = sh("systemd-escape", "--", name)
    assert names.unit(name) == f"llmux-model@{escaped}.service"
    sh("llmuxctl", "checkpoint", name)
    assert complete(name).status == 200
    assert sh("podman", "ps", "--format", "{{.Names}}") == names.container(name)


def test_units_verify() -> None:
    sh("systemd-analyze", "verify", "--man=no", "llmuxd.service", "llmuxd.socket",
       names.unit(OPT))  # fmt: skip


def test_check_finds_nothing_wrong_here() -> None:
    two_fakes()
    assert "fail" not in sh("llmuxctl", "check")


def test_check_mends_what_it_can() -> None:
    two_fakes()
    options, plugins = Path("/etc/criu/crun.conf"), Path("/usr/lib/criu")
    before = options.read_text()
    options.write_text("libdir=/usr/lib/criu\n# mine\ntimeout=300")
    plugins.rmdir()
    try:
        assert "fail  crun.conf" in sh("llmuxctl", "check", check=False)
        sh("llmuxctl", "check", "--fix", "--yes")
        mended = options.read_text().splitlines()
        assert mended[:3] == ["libdir=/usr/lib/criu", "# mine", "timeout=300"]
        assert set(before.split()) <= {*mended, "mine"}
        assert plugins.is_dir()
    finally:
        options.write_text(before)
        plugins.mkdir(exist_ok=True)
