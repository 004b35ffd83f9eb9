# SPDX-License-Identifier: MIT
"""llmuxctl against the real Control on a private bus."""

import asyncio
import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from llmuxd import accepted, config
from llmuxd.config import Sleep
from llmuxd.ctl.remote import ssh
from llmuxd.errors import ConfigInvalid
from llmuxd.model import canary, vllm

from .llmuxctl import at_a_terminal, begun, llmuxctl
from .private_bus import PrivateBus
from .test_control import QWEN, House, house

__all__ = ["house"]

GOOD = "defaults: {image: i}\nmodels: {a: {aliases: [first], env: {X: on}}, b: {gpus: [1]}}\n"


async def serving(house: House, name: str) -> None:  # noqa: F811
    await house.stage.ask(name)
    await house.stage.settle()


# Looking


async def test_status_is_a_table_without_escape_codes(house: House) -> None:  # noqa: F811
    await serving(house, "b")
    done = await llmuxctl("status", TERM="xterm")
    assert done.status == 0
    head, qwen, b = done.out.splitlines()
    assert head.split("  ")[0] == "MODEL" and "LAST SWITCH" in head
    assert qwen.split() == [QWEN, "cold", "-", "0", "0", "-", "-", "-"]
    assert b.split()[:5] == ["b", "serving", "GPU", "0", "0"] and "cold 1.50s" in b
    assert "\x1b" not in done.out and not any(line.endswith(" ") for line in (head, qwen, b))


async def test_status_tells_the_last_switch_of_one_that_is_out(house: House) -> None:  # noqa: F811
    await serving(house, "b")
    await house.stage.result(house.stage.switcher.stop("b"))
    *_, b = (await llmuxctl("status")).out.splitlines()
    assert b.split()[:2] == ["b", "cold"] and "cold 1.50s" in b
    assert "Came up by: cold 1.50s" in (await llmuxctl("show", "b")).out


async def test_status_at_a_terminal_has_colours(house: House) -> None:  # noqa: F811
    await serving(house, "b")
    async with at_a_terminal("status") as terminal:
        assert await terminal.ends() == 0
        assert "\x1b[32mserving\x1b[0m" in terminal.text


async def test_who_wants_no_colours_gets_none(house: House) -> None:  # noqa: F811
    async with at_a_terminal("status", NO_COLOR="1") as terminal:
        assert await terminal.ends() == 0
        assert "cold" in terminal.text and "\x1b" not in terminal.text


@pytest.mark.parametrize("words", [("--json", "status"), ("status", "--json")])
async def test_status_as_json_has_the_names_of_the_bus(
    house: House,  # noqa: F811
    words: tuple[str, ...],
) -> None:
    found = (await llmuxctl(*words)).json
    assert [model["Name"] for model in found] == [QWEN, "b"]
    path = "/Model/Qwen_2fQwen2_2e5_2d3B_2dInstruct"
    assert found[0] == await house.caller.get_all(path, "org.llmux.Model")


async def test_show_tells_all_of_a_model(house: House) -> None:  # noqa: F811
    done = await llmuxctl("show", "qwen")
    assert f"Name: {QWEN}" in done.out and "Checkpoint: none (none was taken)" in done.out
    assert (await llmuxctl("show", "qwen", "--json")).json["Aliases"] == ["qwen"]


async def test_version_needs_no_llmuxd(bus: PrivateBus) -> None:
    done = await llmuxctl("version")
    assert done.status == 0 and "llmuxd does not run" in done.out
    assert (await llmuxctl("version", "--json")).json["llmuxd"] is None


async def test_version_asks_the_one_that_runs(house: House) -> None:  # noqa: F811
    found = (await llmuxctl("version", "--json")).json
    assert found["llmuxd"] == found["llmuxctl"]


async def test_without_llmuxd_it_says_what_to_do(bus: PrivateBus) -> None:
    done = await llmuxctl("status")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("llmuxctl: llmuxd does not run (systemctl start llmuxd; ")


async def test_without_a_bus_too(tmp_path: Path) -> None:
    done = await llmuxctl("status", DBUS_SYSTEM_BUS_ADDRESS=f"unix:path={tmp_path}/none")
    assert done.status == 1 and "no system bus" in done.err


# Jobs


async def test_a_job_is_waited_for_and_told(house: House) -> None:  # noqa: F811
    gate = house.stage.units.hold("start", QWEN)
    process = await begun("switch", "qwen")
    assert process.stderr is not None
    while b"qwen: starting" not in (line := await process.stderr.readline()):
        assert b"\x1b" not in line
    gate.open()
    out, _ = await process.communicate()
    assert process.returncode == 0 and out.startswith(b"qwen: switch done in ")


async def test_a_job_as_json(house: House) -> None:  # noqa: F811
    found = (await llmuxctl("switch", QWEN, "--json")).json
    assert found.pop("seconds") > 0
    assert found == {
        "job": "/Job/1", "kind": "switch", "model": QWEN, "result": "done", "error": "",
    }  # fmt: skip


async def test_warmup_takes_all_models(house: House) -> None:  # noqa: F811
    found = (await llmuxctl("warmup", "--json")).json
    assert [each["result"] for each in found] == ["done", "done"]
    assert [str(house.stage.switcher.state(name)) for name in (QWEN, "b")] == ["checkpointed"] * 2


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM that can sleep at level 2, or not at all, and has a canary."""
    monkeypatch.setattr(vllm, "offers", lambda port, extension: (Sleep.LEVEL_2, Sleep.OFF))
    monkeypatch.setattr(canary, "of_run", lambda run: "a word")


@pytest.mark.usefixtures("offers")
async def test_warmup_with_tune_prints_a_table_and_what_is_chosen(house: House) -> None:  # noqa: F811
    house.stage.units.backs = {"checkpoint 2": 4.0, "checkpoint off": 3.0, "park off": 6.0}
    house.stage.units.broken = {"park 2"}
    done = await llmuxctl("warmup", "--tune", "qwen")
    assert done.status == 0
    first, head, *rows, last = done.out.splitlines()
    assert first.startswith("qwen: tune done in ")
    assert head.split() == ["KEY", "VALUE", "OUT", "BACK", "SIZE", "ROUNDS"]
    out = [row.split() for row in rows]
    assert [row[:2] for row in out] == [
        ["image_sleep", "2"], ["park_sleep", "2"], ["image_sleep", "off"], ["park_sleep", "off"],
    ]  # fmt: skip
    assert out[2][4:] == ["3.00", "s", "3B", "3"]
    assert out[1][2:6] == ["-", "-", "-", "0"] and "did not come back from memory" in rows[1]
    assert last == "qwen: image_sleep off (tuned), park_sleep off (tuned)"
    # Of what follows upon another at once it may see the last alone.
    assert re.search(r"(image|park)_sleep (2|off), [123] of 3", done.err)
    shown = (await llmuxctl("show", QWEN)).out
    assert "Lets go: image_sleep off (tuned), park_sleep off (tuned)" in shown
    assert "Tuned: " in shown and "not used" not in shown


@pytest.mark.usefixtures("offers")
async def test_warmup_with_tune_as_json(house: House) -> None:  # noqa: F811
    house.stage.units.backs = {"park off": 6.0}
    (found,) = (await llmuxctl("warmup", "--tune", "--json", QWEN)).json
    assert (found["kind"], found["result"], found["why_not"]) == ("tune", "done", "")
    assert found["letting_go"][1] == {"key": "park_sleep", "value": "2", "why": "tuned"}
    assert [each["rounds"] for each in found["measured"]] == [3, 3, 3, 1]
    assert found["measured"][0] == {
        "key": "image_sleep", "value": "2", "out": found["measured"][0]["out"], "back": 1.0,
        "size": 3, "rounds": 3, "failed": "",
    }  # fmt: skip


@pytest.mark.usefixtures("offers")
async def test_warmup_with_tune_that_comes_to_nothing_prints_the_table_too(
    house: House,  # noqa: F811
) -> None:
    house.stage.units.broken = {"checkpoint 2", "checkpoint off"}
    done = await llmuxctl("warmup", "--tune", "qwen")
    assert done.status == 1
    head, *rows = done.out.splitlines()
    assert head.split()[:2] == ["KEY", "VALUE"] and len(rows) == 4
    assert "its canary says no" in rows[0]
    assert "came back in no way of image_sleep" in done.err.splitlines()[-1]


async def test_warmup_with_tune_of_what_has_nothing_to_choose(house: House) -> None:  # noqa: F811
    done = await llmuxctl("warmup", "--tune", "b")
    assert done.status == 0
    assert done.out.splitlines()[1:] == [
        "b: nothing to tune: without a GPU there is nothing to let go of"
    ]
    assert "nothing to tune: without a GPU" in done.err
    assert house.stage.units.log == ["start b", "stop b"]


async def test_a_failed_job_says_why_and_what_to_do(house: House) -> None:  # noqa: F811
    house.stage.units.break_verb("start", "b")
    done = await llmuxctl("switch", "b")
    assert done.status == 1 and done.out == ""
    last = done.err.splitlines()[-1]
    assert last.startswith("llmuxctl: b: switch failed after ")
    assert "it ran out of memory ('llmuxctl logs b' shows more)" in last


async def test_an_unknown_model_is_one_line(house: House) -> None:  # noqa: F811
    done = await llmuxctl("switch", "qwne")
    assert (done.status, done.err) == (
        1, "llmuxctl: there is no model 'qwne' (did you mean 'qwen'?)\n",
    )  # fmt: skip


async def test_it_does_not_wait_for_a_bus_that_is_gone(house: House) -> None:  # noqa: F811
    gate = house.stage.units.hold("start", "b")
    running = asyncio.create_task(llmuxctl("switch", "b"))
    await gate.reached.wait()
    house.bus.stop()
    done = await running
    assert done.status == 1 and "the connection to the system bus ended" in done.err
    gate.open()


async def test_jobs_are_listed_and_cancelled(house: House) -> None:  # noqa: F811
    gate = house.stage.units.hold("start", QWEN)
    assert (await llmuxctl("jobs")).out == "no jobs\n"
    house.stage.switcher.switch(QWEN)
    await gate.reached.wait()
    head, job = (await llmuxctl("jobs")).out.splitlines()
    assert head.split() == ["JOB", "KIND", "MODEL", "SECONDS", "PROGRESS", "PHASE"]
    assert job.split()[:3] == ["1", "switch", QWEN] and job.endswith("starting")
    (found,) = (await llmuxctl("jobs", "--json")).json
    assert found["Job"] == "/Job/1"
    done = await llmuxctl("cancel", "1", "7")
    assert done.status == 1 and done.out == "job 1: canceled\n" and "no job 7" in done.err
    assert house.stage.switcher.jobs.all() == []
    gate.open()


async def test_interrupt_without_a_terminal_cancels(house: House) -> None:  # noqa: F811
    gate = house.stage.units.hold("start", "b")
    process = await begun("switch", "b")
    assert process.stderr is not None
    while b"starting" not in await process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130 and b"switch canceled after" in err
    assert str(house.stage.ended[0].result) == "canceled"
    gate.open()


async def test_interrupt_at_a_terminal_asks(house: House) -> None:  # noqa: F811
    gate = house.stage.units.hold("start", "b")
    async with at_a_terminal("switch", "b") as terminal:
        await terminal.shows("b: starting")
        terminal.type("\x03")
        await terminal.shows("Cancel this job? [y/N] ")
        terminal.type("n\n")
        await terminal.shows("b: starting")
        assert house.stage.switcher.jobs.all()
        terminal.type("\x03")
        await terminal.shows("Cancel this job? [y/N] ")
        terminal.type("y\n")
        await terminal.shows("b: switch canceled after")
        assert await terminal.ends() == 130
    gate.open()


async def test_a_second_interrupt_leaves_the_job_alone(house: House) -> None:  # noqa: F811
    gate = house.stage.units.hold("start", "b")
    async with at_a_terminal("switch", "b") as terminal:
        await terminal.shows("b: starting")
        terminal.type("\x03")
        await terminal.shows("[y/N]")
        terminal.type("\x03")
        await terminal.shows("b: job 1 goes on; 'llmuxctl cancel 1' ends it")
        assert await terminal.ends() == 130
    assert [job.number for job in house.stage.switcher.jobs.all()] == [1]
    gate.open()


async def test_a_job_that_ends_meanwhile_needs_no_answer(house: House) -> None:  # noqa: F811
    gate = house.stage.units.hold("start", "b")
    async with at_a_terminal("switch", "b") as terminal:
        await terminal.shows("b: starting")
        terminal.type("\x03")
        await terminal.shows("[y/N]")
        gate.open()
        await terminal.shows("b: switch done in ")
        assert await terminal.ends() == 0


# top


async def test_top_draws_with_each_signal_and_gives_the_screen_back(
    house: House,  # noqa: F811
) -> None:
    calls = 0

    def count(message: object) -> None:
        nonlocal calls
        calls += getattr(message, "member", "") == "GetManagedObjects"

    house.own.add_message_handler(count)
    async with at_a_terminal("top") as terminal:
        before = terminal.modes()
        assert "\x1b[?1049h" in await terminal.shows("2 models, 0 serving")
        gate = house.stage.units.hold("start", "b")
        house.stage.switcher.switch("b")
        await terminal.shows("JOB")
        await terminal.shows("starting")
        gate.open()
        await terminal.shows("2 models, 1 serving")
        terminal.type("q")
        assert await terminal.ends() == 0
        assert terminal.text.endswith("\x1b[?1049l")
        assert terminal.modes()[3] == before[3]
    assert calls == 1


@pytest.mark.parametrize("how", ["ctrl-c", "sigterm", "llmuxd"])
async def test_top_gives_the_screen_back_however_it_ends(
    house: House,  # noqa: F811
    how: str,
) -> None:
    async with at_a_terminal("top") as terminal:
        await terminal.shows("2 models")
        if how == "ctrl-c":
            terminal.type("\x03")
        elif how == "sigterm":
            terminal.process.send_signal(signal.SIGTERM)
        else:
            await house.own.release_name("org.llmux")
        assert await terminal.ends() == (1 if how == "llmuxd" else 0)
        assert "\x1b[?1049l" in terminal.text
        assert ("llmuxd went away" in terminal.text) is (how == "llmuxd")


async def test_top_needs_a_terminal(house: House) -> None:  # noqa: F811
    done = await llmuxctl("top")
    assert done.status == 1 and "top needs a terminal" in done.err


async def test_warmup_of_a_name_that_nobody_has_starts_none(house: House) -> None:  # noqa: F811
    done = await llmuxctl("warmup", "b", "typo")
    assert done.status == 1 and "there is no model 'typo'" in done.err
    assert house.stage.units.log == []


async def test_top_as_json_is_a_line_for_each_change(house: House) -> None:  # noqa: F811
    process = await begun("top", "--json")
    assert process.stdout is not None
    first = json.loads(await process.stdout.readline())
    assert [model["State"] for model in first["models"]] == ["cold", "cold"]
    house.stage.switcher.switch("b")
    while json.loads(await process.stdout.readline())["models"][1]["State"] != "serving":
        pass
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 130


# The configuration


async def test_config_check_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "llmux.yaml"
    path.write_text(GOOD)
    done = await llmuxctl("config", "check", "-c", str(path))
    assert (done.status, done.out) == (0, f"{path}: good, 2 models\n")
    path.write_text("models:\n  a:\n    imag: i\n")
    done = await llmuxctl("config", "check", "-c", str(path))
    assert done.status == 2 and f"{path}:3:5: unknown key 'imag'" in done.err
    done = await llmuxctl("config", "check", "--json", "-c", str(path))
    assert done.status == 2 and done.json["valid"] is False


async def test_config_show_is_a_configuration_that_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "llmux.yaml"
    others = """,
  native: {engine: unit, unit: ollama.service, port: 11434},
  embeds: {checkpoint_dir: /x, canary: {path: /e, body: {a: [1, 'on']}}},
  asks: {canary: {path: /version}}}
"""
    path.write_text(GOOD.rstrip()[:-1] + others)
    done = await llmuxctl("config", "show", "-c", str(path))
    before, after = config.load(path), config.parse(done.out, path)
    for name, model in before.models.items():
        same = replace(model, devices=model.device_names)
        assert after.models[name] == same and same.definition == model.definition
    assert after.aliases == before.aliases
    found = yaml.safe_load(done.out)
    assert (await llmuxctl("config", "show", "--json", "-c", str(path))).json == found


async def test_config_show_is_what_llmuxd_accepted(tmp_path: Path) -> None:
    path = tmp_path / "llmux.yaml"
    path.write_text(GOOD)
    accepted.publish(config.load(path))
    path.write_text("models: [")
    done = await llmuxctl("config", "show", "--json")
    assert (done.status, list(done.json["models"])) == (0, list(config.parse(GOOD, path).models))
    assert (await llmuxctl("config", "show", "-c", str(path))).status == 2


async def test_reload_tells_the_mistake(house: House) -> None:  # noqa: F811
    assert (await llmuxctl("reload")).status == 0
    house.reload_error.append(ConfigInvalid("llmux.yaml:3:5: unknown key 'x'"))
    done = await llmuxctl("reload")
    assert (done.status, done.err) == (1, "llmuxctl: llmux.yaml:3:5: unknown key 'x'\n")


# Another host


async def test_host_is_reached_by_ssh(house: House, tmp_path: Path) -> None:  # noqa: F811
    """With a ssh that runs here what it was asked to run there, over two pipes."""
    fake = tmp_path / "ssh"
    fake.write_text(f"#!{sys.executable}\nimport os, sys\n"
                    f"open({str(tmp_path / 'argv')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
                    "bus = os.environ['DBUS_SYSTEM_BUS_ADDRESS']\n"
                    "os.execvp(sys.argv[4], [*sys.argv[4:], '-p', bus])\n")  # fmt: skip
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = await llmuxctl("-H", "me@there", "switch", "b", PATH=path)
    assert done.status == 0 and "b: switch done" in done.out
    assert (tmp_path / "argv").read_text() == "-xT -- me@there systemd-stdio-bridge"


async def test_host_that_cannot_be_reached(tmp_path: Path) -> None:
    fake = tmp_path / "ssh"
    fake.write_text("#!/bin/sh\necho 'ssh: no such host' >&2\nexit 255\n")
    fake.chmod(0o755)
    done = await llmuxctl("-H", "there", "status", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.status == 1
    assert "ssh: no such host" in done.err and "ssh ended with 255" in done.err


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("me@there", "-- me@there"),
        ("me@there:2222", "-p 2222 -- me@there"),
        ("me@[::1]:22", "-p 22 -- me@::1"),
        ("fe80::1", "-- fe80::1"),
    ],
)
def test_host_may_name_a_port(host: str, words: str) -> None:
    assert ssh(host) == ["ssh", "-xT", *words.split()]


@pytest.mark.parametrize("words", [("version",), ("logs", "b"), ("status",)])
async def test_without_ssh_it_is_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    done = await llmuxctl("-H", "there", *words, PATH=str(tmp_path))
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("llmuxctl: there is no ssh here") and done.err.count("\n") == 1


async def test_what_looks_at_files_takes_no_host() -> None:
    done = await llmuxctl("-H", "there", "config", "check")
    assert done.status == 2 and "this host only" in done.err
