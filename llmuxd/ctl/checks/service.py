# SPDX-License-Identifier: MIT
"""llmuxd itself as it is installed: its units, its port and its place on the bus."""

import re

from .change import Run
from .look import Look
from .result import Result, fail, ok, skip, warn

SOCKET, DAEMON, MODEL = "llmuxd.socket", "llmuxd.service", "llmux-model@check.service"
DEFAULT_PORT = 4000
_INSTALL = "install llmuxd (make install)"
_BUS_NAME = "org.llmux"
_POLICY = ("/usr/share/dbus-1/system.d/org.llmux.conf", "/etc/dbus-1/system.d/org.llmux.conf")
_LISTEN = "0A"

Unit = dict[str, list[str]]


def units(look: Look) -> Result:
    """systemd knows llmuxd's units and can start what they name."""
    found = _units(look)
    if not found:
        return fail("units", "systemctl does not answer", "systemctl status")
    for name, unit in found.items():
        problem = _problem(look, name.replace("@check", "@"), unit)
        if problem:
            return problem
    enabled = _one(found[SOCKET], "UnitFileState")
    state = _one(found[SOCKET], "ActiveState")
    return ok("units", f"installed; {SOCKET} is {enabled} and {state}")


def port(look: Look) -> Result:
    """The endpoint's port is llmuxd's or free."""
    found = _units(look)
    socket = found.get(SOCKET, {})
    ports = [
        int(match[1])
        for listen in socket.get("Listen", [])
        if (match := re.search(r":(\d+) \(Stream\)", listen))
    ] or [DEFAULT_PORT]
    words = ", ".join(map(str, ports))
    mine = [_one(found.get(name, {}), "ActiveState") for name in (SOCKET, DAEMON)]
    if "active" in mine:
        return ok("port", f"{words}, and llmuxd has it")
    for number in ports:
        if number in _listening(look):
            return fail(
                "port",
                f"{number} is taken{_owner(look, number)}",
                f"end that, or set another ListenStream= (systemctl edit {SOCKET})",
            )
    return ok("port", f"{words} is free")


def bus(look: Look) -> Result:
    """The system bus lets llmuxd have its name, and starts it when it is called."""
    if not look.host.exists("/run/dbus/system_bus_socket"):
        return fail("bus", "there is no system bus", "systemctl start dbus.socket")
    policy = next((path for path in _POLICY if look.host.exists(path)), None)
    if policy is None:
        return fail("bus", f"{_POLICY[0]} is missing: nobody may own {_BUS_NAME}", _INSTALL)
    done = look.host.run(
        ["busctl", "--system", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus",
         "org.freedesktop.DBus", "ListActivatableNames"]
    )  # fmt: skip
    if done.status == 127:
        return skip("bus", f"{policy} is here; there is no busctl to ask the bus")
    if done.status != 0:
        return fail(
            "bus", f"the system bus does not answer: {done.reason}", "systemctl status dbus"
        )
    if f'"{_BUS_NAME}"' not in done.out:
        return fail(
            "bus",
            f"the bus does not know {_BUS_NAME}",
            f"systemctl reload dbus; if that does not help, {_INSTALL}",
            Run(("systemctl", "reload", "dbus")),
        )
    return ok("bus", policy)


def _units(look: Look) -> dict[str, Unit]:
    wanted = (SOCKET, DAEMON, MODEL)
    keys = "LoadState,LoadError,ActiveState,UnitFileState,Listen,ExecStart,NeedDaemonReload"
    done = look.host.run(["systemctl", "show", f"--property={keys}", "--", *wanted])
    blocks = [block for block in done.out.split("\n\n") if block.strip()]
    if done.status != 0 or len(blocks) != len(wanted):
        return {}
    return dict(zip(wanted, map(_unit, blocks), strict=True))


def _unit(block: str) -> Unit:
    unit: Unit = {}
    for line in block.splitlines():
        key, _, value = line.partition("=")
        unit.setdefault(key, []).append(value)
    return unit


def _one(unit: Unit, key: str) -> str:
    return unit.get(key, [""])[0]


def _problem(look: Look, name: str, unit: Unit) -> Result | None:
    state = _one(unit, "LoadState")
    if state == "not-found":
        return fail(
            "units", f"systemd does not know {name}", f"{_INSTALL}; systemctl daemon-reload"
        )
    if state == "masked":
        return fail("units", f"{name} is masked", f"systemctl unmask {name}")
    if state != "loaded":
        why = _one(unit, "LoadError").partition('"')[2].rstrip('"') or state
        return fail("units", f"{name} cannot be loaded: {why}", f"systemctl status {name}")
    found = re.search(r"path=([^ ;]+)", _one(unit, "ExecStart"))
    if found and not look.host.exists(found[1]):
        return fail("units", f"{name} starts {found[1]}, which does not exist", _INSTALL)
    if _one(unit, "ActiveState") == "failed":
        return fail("units", f"{name} has failed", f"systemctl status {name}")
    if _one(unit, "NeedDaemonReload") == "yes":
        reload = Run(("systemctl", "daemon-reload"))
        return warn("units", f"{name} changed on disk", str(reload), reload)
    return None


def _listening(look: Look) -> set[int]:
    ports = set()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (look.host.read(path) or "").splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] == _LISTEN:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def _owner(look: Look, number: int) -> str:
    done = look.host.run(["ss", "-Hltnp", f"sport = :{number}"])
    found = re.search(r'\("([^"]+)",pid=(\d+)', done.out)
    return f" by {found[1]} (PID {found[2]})" if found else ""
