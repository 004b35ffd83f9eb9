# SPDX-License-Identifier: MIT
"""Whoever dies in the middle of a dump: the image before is what the model comes back from."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmuxd import names
from llmuxd.model import cgroup
from llmuxd.model.activation import noted_place
from llmuxd.model.checkpoint import aside

from .guest import (
    OPT,
    QWEN,
    complete,
    configure,
    counter,
    eventually,
    image,
    journal,
    record,
    sh,
    state,
)

CRIU = Path("/usr/local/sbin/criu")
HOLD = Path("/run/hold-criu")
HELD = Path("/run/criu-is-held")


@pytest.fixture
def held_criu() -> Iterator[Callable[[], None]]:
    """CRIU waits, from when it is held, before it does anything for podman."""
    CRIU.write_text(
        f"""#!/bin/sh
if [ "$1" = swrk ] && [ -e {HOLD} ]; then
    echo $$ > {HELD}
    while [ -e {HOLD} ]; do sleep 0.02; done
fi
exec /usr/sbin/criu "$@"
"""
    )
    CRIU.chmod(0o755)
    yield HOLD.touch
    for path in (CRIU, HOLD, HELD):
        path.unlink(missing_ok=True)


def _kill_helper() -> None:
    sh("pkill", "-KILL", "-f", "llmux-model stop")


def _kill_stayed() -> None:
    sh("pkill", "-KILL", "-f", "llmux-model start")


def _kill_podman() -> None:
    sh("pkill", "-KILL", "-f", "podman container checkpoint")


def _kill_criu() -> None:
    os.kill(int(HELD.read_text()), signal.SIGKILL)


def _kill_unit() -> None:
    sh("systemctl", "kill", "--kill-whom=all", "-s", "KILL", names.unit(OPT))


@pytest.mark.parametrize("kill", [_kill_helper, _kill_stayed, _kill_podman, _kill_criu, _kill_unit])
def test_who_dies_in_a_dump_leaves_the_image_before(
    kill: Callable[[], None], held_criu: Callable[[], None]
) -> None:
    configure({name: {"args": ["--model", name]} for name in (OPT, QWEN)})
    text = complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    assert complete(OPT).text == text
    assert complete(OPT).text == text
    assert counter(OPT) == 3
    before = record(OPT)
    held_criu()
    sh("systemctl", "stop", "--no-block", names.unit(OPT))
    eventually(HELD.exists, "CRIU was called")
    kill()
    HOLD.unlink()
    eventually(lambda: state(OPT) in ("checkpointed", "failed"), "it is down")
    told = record(OPT)
    assert not told["invalid"] and told == before
    assert complete(OPT).text == text
    assert counter(OPT) == 2
    assert "cold start: the restore" not in journal(names.unit(OPT))
    assert not aside(image(OPT)).exists()
    assert complete(QWEN).text


@pytest.mark.parametrize("when", ["it serves", "it was reloaded", "it is dumped"])
def test_one_that_is_killed_whole_is_cleaned_up_at_once(
    when: str, held_criu: Callable[[], None]
) -> None:
    """Not by its next start: nothing is left of it but its image."""
    configure({OPT: {"args": ["--model", OPT]}})
    text = complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    assert complete(OPT).text == text
    before = record(OPT)
    if when == "it was reloaded":
        sh("systemctl", "reload", names.unit(OPT))
    elif when == "it is dumped":
        held_criu()
        sh("systemctl", "stop", "--no-block", names.unit(OPT))
        eventually(HELD.exists, "CRIU was called")
        control = Path(f"{cgroup.of_unit(names.unit(OPT))}/.control")
        eventually(lambda: not control.exists(), "its command has left systemd's cgroup")
    _kill_unit()
    eventually(lambda: state(OPT) in ("checkpointed", "failed"), "it is down")
    assert noted_place(OPT) is None
    running = sh("podman", "ps", "--quiet", "--filter", f"name={names.container(OPT)}")
    assert not running and record(OPT) == before
    HOLD.unlink(missing_ok=True)
    assert complete(OPT).text == text
    assert "the run before was not cleaned up" not in journal(names.unit(OPT))


def test_a_dump_comes_to_its_end_without_conmon(held_criu: Callable[[], None]) -> None:
    """Who else would have seen how the container ended?"""
    configure({name: {"args": ["--model", name]} for name in (OPT, QWEN)})
    text = complete(OPT).text
    held_criu()
    sh("systemctl", "stop", "--no-block", names.unit(OPT))
    eventually(HELD.exists, "CRIU was called")
    sh("pkill", "-KILL", "conmon")
    HOLD.unlink()
    eventually(lambda: state(OPT) in ("checkpointed", "failed"), "it is down")
    for answers in (2, 3):
        assert complete(OPT).text == text
        assert counter(OPT) == answers
        sh("llmuxctl", "checkpoint", OPT)
        assert sh("podman", "ps", "--quiet") == ""
    assert complete(QWEN).text


def _kill_starter() -> None:
    sh("pkill", "-KILL", "-f", "llmux-model start")


def _kill_restore() -> None:
    sh("pkill", "-KILL", "-f", "podman container restore")


@pytest.mark.parametrize("kill", [_kill_starter, _kill_restore, _kill_criu, _kill_unit])
def test_who_dies_in_a_restore_leaves_a_model_that_starts(
    kill: Callable[[], None], held_criu: Callable[[], None]
) -> None:
    configure({name: {"args": ["--model", name]} for name in (OPT, QWEN)})
    text = complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    held_criu()
    sh("systemctl", "start", "--no-block", names.unit(OPT))
    eventually(HELD.exists, "CRIU was called")
    kill()
    HOLD.unlink()
    eventually(lambda: state(OPT) in ("serving", "failed"), "its start is over")
    assert complete(OPT).text == text
    assert complete(QWEN).text


@pytest.mark.parametrize("whom", ["all", "main"])
def test_one_that_is_killed_while_it_is_parked_comes_back_from_its_image(whom: str) -> None:
    configure({name: {"args": ["--model", name], "tier": "park"} for name in (OPT, QWEN)})
    text = complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    assert complete(OPT).text == text
    sh("llmuxctl", "park", OPT)
    sh("systemctl", "kill", f"--kill-whom={whom}", "-s", "KILL", names.unit(OPT))
    eventually(lambda: state(OPT) == "failed", "it is down")
    assert complete(OPT).text == text
    assert counter(OPT) == 2
    assert state(OPT) == "serving"
