# SPDX-License-Identifier: MIT
"""The system bus, by either of its daemons and by everybody's clients; and its restarts."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .guest import OPT, QWEN, complete, eventually, fails, sh, state, stream, two_fakes, unit

ALIAS = Path("/etc/systemd/system/dbus.service")
BROKER = "/usr/lib/systemd/system/dbus-broker.service"
SWITCH = ("org.llmux", "/Manager", "org.llmux.Manager", "Switch")


@contextmanager
def dbus_daemon() -> Iterator[None]:
    """The reference implementation instead of dbus-broker, behind the same socket."""
    ALIAS.unlink()
    sh("systemctl", "daemon-reload")
    sh("systemctl", "stop", "dbus-broker.service")
    try:
        sh("systemctl", "start", "dbus.service")
        assert sh("systemctl", "show", "-P", "ExecStart", "dbus.service").find("dbus-daemon") >= 0
        yield
    finally:
        sh("systemctl", "stop", "dbus.service")
        ALIAS.symlink_to(BROKER)
        sh("systemctl", "daemon-reload")
        sh("systemctl", "start", "dbus-broker.service")


def answers() -> bool:
    """Whether llmuxd is on the bus, without being started for it."""
    got = sh("busctl", "--auto-start=no", "get-property", *SWITCH[:3], "Version", check=False)
    return got.startswith("s ")


def every_client_works() -> None:
    """busctl, gdbus and dbus-send see the same, and each of them switches."""
    assert OPT in sh("busctl", "call", *SWITCH[:3], "ListModels")
    assert "/Model/facebook_2fopt_2d125m" in sh("busctl", "tree", "org.llmux")
    introspected = sh("busctl", "introspect", *SWITCH[:3])
    assert ".Preload" in introspected and ".GPUs" in introspected and ".JobRemoved" in introspected
    gdbus = ("gdbus", "call", "--system", "--dest", "org.llmux", "--object-path", "/Manager")
    assert OPT in sh(*gdbus, "--method", "org.llmux.Manager.ListModels")
    assert "/Manager" in sh("gdbus", "introspect", "--system", "--recurse", "--dest", "org.llmux",
                            "--object-path", "/")  # fmt: skip
    send = ("dbus-send", "--system", "--print-reply=literal", "--dest=org.llmux", "/Manager")
    assert OPT in sh(*send, "org.llmux.Manager.ListModels")
    for name, words in (
        (OPT, ("busctl", "call", *SWITCH, "s", OPT)),
        (QWEN, (*gdbus, "--method", "org.llmux.Manager.Switch", QWEN)),
        (OPT, (*send, "org.llmux.Manager.Switch", f"string:{OPT}")),
    ):
        assert "/Job/" in sh(*words)
        eventually(lambda name=name: state(name) == "serving", f"{words[0]} switches")  # type: ignore[misc]
    for words in (
        ("busctl", "call", *SWITCH, "s", "qwne"),
        (*gdbus, "--method", "org.llmux.Manager.Switch", "qwne"),
        (*send, "org.llmux.Manager.Switch", "string:qwne"),
    ):
        _, said = fails(*words)
        assert "did you mean 'qwen'?" in said and "Traceback" not in said and ".py" not in said


def monitor_sees_each_change_once() -> None:
    with subprocess.Popen(
        ["busctl", "monitor", "--json=short", "--match=type='signal',sender='org.llmux'"],
        stdout=subprocess.PIPE, text=True,
    ) as monitor:  # fmt: skip
        assert monitor.stdout is not None
        sh("llmuxctl", "switch", OPT)
        states: list[str] = []
        for line in monitor.stdout:
            message = json.loads(line)
            if message.get("member") == "PropertiesChanged" and "opt" in message["path"]:
                changed = message["payload"]["data"][1]
                states += [changed["State"]["data"]] if "State" in changed else []
            if message.get("member") == "JobRemoved":
                break
        monitor.terminate()
    assert states == ["starting", "serving"]


def test_every_client_works_on_dbus_broker() -> None:
    two_fakes()
    monitor_sees_each_change_once()
    every_client_works()


def test_every_client_works_on_dbus_daemon() -> None:
    two_fakes()
    with dbus_daemon():
        eventually(answers, "llmuxd is on the new bus")
        monitor_sees_each_change_once()
        every_client_works()
    eventually(answers, "llmuxd is back on the old one")


def restart_the_bus() -> None:
    """As often as one likes; systemd would stop after the fifth within ten seconds."""
    sh("systemctl", "reset-failed", "dbus-broker.service")
    sh("systemctl", "restart", "dbus-broker.service")


def test_restarts_of_the_bus_disturb_nobody() -> None:
    """In quick succession, so that llmuxd is caught in the middle of coming back."""
    two_fakes()
    assert complete(OPT).text
    llmuxd = sh("systemctl", "show", "-P", "MainPID", "llmuxd.service")
    with stream(OPT, 60, seconds_per_token=0.05) as tokens:
        next(tokens)
        for _ in range(6):
            restart_the_bus()
        rest = list(tokens)
    assert rest[-1] == "[DONE]" and len(rest) >= 60
    eventually(answers, "llmuxd is on the new bus", timeout=20)
    assert sh("systemctl", "show", "-P", "MainPID", "llmuxd.service") == llmuxd
    assert complete(QWEN).text
    eventually(lambda: [state(OPT), state(QWEN)] == ["checkpointed", "serving"], "one has left")
    assert unit(OPT, "Result") == "success"
