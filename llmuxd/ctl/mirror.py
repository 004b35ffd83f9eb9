# SPDX-License-Identifier: MIT
"""llmuxd's objects, read once and kept up to date by its signals alone."""

from collections.abc import Mapping
from typing import Any

from dbus_next import Message, MessageType

MANAGER = "org.llmux.Manager"
MODEL = "org.llmux.Model"
JOB = "org.llmux.Job"

_OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
_PROPERTIES = "org.freedesktop.DBus.Properties"

Properties = dict[str, Any]


class Mirror:
    """Every object's properties. `raw` is what GetManagedObjects gave."""

    def __init__(self, raw: Mapping[str, Mapping[str, Mapping[str, Any]]]):
        self._objects: dict[str, dict[str, Properties]] = {}
        for path, interfaces in raw.items():
            self._add(path, interfaces)

    def apply(self, message: Message) -> bool:
        """Take a signal in; whether anything is different now."""
        if message.message_type is not MessageType.SIGNAL:
            return False
        match (message.interface, message.member):
            case (_, "PropertiesChanged") if message.interface == _PROPERTIES:
                interface, changed, _ = message.body
                known = self._objects.get(message.path, {}).get(interface)
                if known is None:
                    return False
                known.update({key: value.value for key, value in changed.items()})
            case (_, "InterfacesAdded") if message.interface == _OBJECT_MANAGER:
                self._add(*message.body)
            case (_, "InterfacesRemoved") if message.interface == _OBJECT_MANAGER:
                path, interfaces = message.body
                for interface in interfaces:
                    self._objects.get(path, {}).pop(interface, None)
            case _:
                return False
        return True

    def manager(self) -> Properties:
        """Those of /Manager."""
        return next(iter(self._of(MANAGER).values()), {})

    def models(self) -> list[Properties]:
        """Those of each model, in the order of the configuration."""
        return list(self._of(MODEL).values())

    def jobs(self) -> dict[str, Properties]:
        """Those of each job that runs, by its path, oldest first."""
        return self._of(JOB)

    def _of(self, interface: str) -> dict[str, Properties]:
        found = ((path, each.get(interface)) for path, each in self._objects.items())
        return {path: properties for path, properties in found if properties is not None}

    def _add(self, path: str, interfaces: Mapping[str, Mapping[str, Any]]) -> None:
        known = self._objects.setdefault(path, {})
        for interface, values in interfaces.items():
            known[interface] = {key: value.value for key, value in values.items()}
