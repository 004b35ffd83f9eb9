# SPDX-License-Identifier: MIT
"""Calls to PID 1, in a process of their own: `python3 -m llmuxd.pid1`.

pystemd's calls block, and hold the interpreter's lock while they do: PID 1 answers late during a
daemon-reload, and every stream of the proxy would stand still for so long. One JSON line on
standard input asks for a call, one on standard output answers it.

    {"method": "StartUnit", "unit": "llmux-model@a.service"}    {"value": "/org/…/job/17"}
    {"method": "status", "unit": "llmux-model@a.service"}       {"value": {"ActiveState": …}}
    {"method": "job", "path": "/org/…/job/17"}                  {"value": true}
    {"method": "list", "pattern": "llmux-model@*.service"}      {"value": ["llmux-model@a.service"]}

A failed call is answered with {"error": TEXT}, one that PID 1 was not there for with
{"away": TEXT}. The process ends when its input does, and when its
connection to the bus is gone.
"""

import errno
import json
import os
import sys
from typing import Any

from pystemd.dbusexc import DBusBaseError
from pystemd.dbuslib import DBus, DBusAddress, apply_signature

_SYSTEMD = b"org.freedesktop.systemd1"
_MANAGER = b"org.freedesktop.systemd1.Manager"
_ROOT = b"/org/freedesktop/systemd1"
_PROPERTIES = b"org.freedesktop.DBus.Properties"
_UNIT_KEYS = ("ActiveState", "SubState", "FreezerState")
_SERVICE_KEYS = ("Result", "StatusText")
# PID 1 is not on the bus: nobody has its name, or it left between a call and its answer.
_AWAY = (errno.EHOSTUNREACH, errno.ENXIO, errno.ETIMEDOUT)
_GONE = (errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN, errno.ECONNREFUSED)


class Pid1:
    """systemd's manager object; each method is one round trip or two."""

    def __init__(self, bus: DBus):
        self._bus = bus

    def begin(self, method: str, unit: str) -> str:
        """StartUnit, StopUnit, ReloadUnit: the path of the job."""
        return _text(self._call(method, b"ss", [unit.encode(), b"replace"]))

    def act(self, method: str, unit: str) -> None:
        """ThawUnit: done when it returns."""
        self._call(method, b"s", [unit.encode()])

    def list_units(self, pattern: str) -> list[str]:
        """The names of the loaded units that match `pattern`."""
        # Two arrays of strings, spelled out as open, items, close: states (any) and patterns.
        arguments: list[tuple[int, bytes | None]] = [
            (ord("a"), b"s"), (-1, None),
            (ord("a"), b"s"), (ord("s"), pattern.encode()), (-1, None),
        ]  # fmt: skip
        listed = self._bus.call_method(
            _SYSTEMD, _ROOT, _MANAGER, b"ListUnitsByPatterns", arguments
        ).body
        return [_text(entry[0]) for entry in listed or []]

    def status(self, unit: str) -> dict[str, str]:
        """The properties that say what the unit does; loads the unit if need be."""
        path = self._call("LoadUnit", b"s", [unit.encode()])
        found = {key: _text(self._property(path, b"Unit", key)) for key in _UNIT_KEYS}
        return found | {key: _text(self._property(path, b"Service", key)) for key in _SERVICE_KEYS}

    def has_job(self, path: str) -> bool:
        """Whether the job is not over yet."""
        try:
            self._property(path.encode(), b"Job", "State")
        except DBusBaseError as error:
            if -int(error.errno) in (*_GONE, *_AWAY):
                raise
            return False
        return True

    def _call(self, method: str, signature: bytes, values: list[bytes]) -> Any:
        arguments = apply_signature(signature, values)
        return self._bus.call_method(_SYSTEMD, _ROOT, _MANAGER, method.encode(), arguments).body

    def _property(self, path: bytes, interface: bytes, key: str) -> Any:
        return self._bus.get_property(
            _SYSTEMD, path, _SYSTEMD + b"." + interface, key.encode(), b"s"
        )


def answer(pid1: Pid1, request: dict[str, str]) -> object:
    """Carry one request out and return its value."""
    method = request["method"]
    match method:
        case "StartUnit" | "StopUnit" | "ReloadUnit":
            return pid1.begin(method, request["unit"])
        case "ThawUnit":
            pid1.act(method, request["unit"])
            return None
        case "status":
            return pid1.status(request["unit"])
        case "job":
            return pid1.has_job(request["path"])
        case "list":
            return pid1.list_units(request["pattern"])
        case _:
            raise ValueError(f"no such method: {method}")


def main() -> int:
    """Serve requests until the input ends."""
    address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS")
    with DBusAddress(address.encode(), False) if address else DBus() as bus:
        pid1 = Pid1(bus)
        for line in sys.stdin:
            try:
                reply: dict[str, object] = {"value": answer(pid1, json.loads(line))}
            except DBusBaseError as error:
                if -int(error.errno) in _GONE:
                    # No answer: who asked starts the next one, with a new connection.
                    return 1
                # The message is bytes, whatever the annotations say.
                words = _text(error.err_message or str(error))
                reply = {"away" if -int(error.errno) in _AWAY else "error": words}
            print(json.dumps(reply), flush=True)
    return 0


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    sys.exit(main())
