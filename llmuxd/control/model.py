# SPDX-License-Identifier: MIT
"""org.llmux.Model."""

from dataclasses import asdict

from dbus_next.service import ServiceInterface

from .. import names
from ..dbus_types import (
    Bool,
    Double,
    FiguresRows,
    LettingGoRows,
    Numbers,
    Seconds,
    String,
    StringMap,
    Strings,
    UInt32,
    UInt64,
)
from ..model.tuning import KEYS
from ..switcher import Switcher
from .edge import reading


class ModelInterface(ServiceInterface):
    """org.llmux.Model at /Model/<encoded name>."""

    def __init__(self, switcher: Switcher, name: str):
        super().__init__("org.llmux.Model")
        self._switcher = switcher
        self._name = name

    @reading
    def Name(self) -> String:
        return self._name

    @reading
    def Aliases(self) -> Strings:
        return list(self._switcher.model(self._name).config.aliases)

    @reading
    def State(self) -> String:
        return self._switcher.state(self._name)

    @reading
    def Tier(self) -> String:
        return self._switcher.model(self._name).config.tier

    @reading
    def GPUs(self) -> Numbers:
        """Those that it holds, or would hold."""
        return list(self._switcher.model(self._name).held)

    @reading
    def Unit(self) -> String:
        return names.unit(self._name)

    @reading
    def Endpoint(self) -> String:
        backend = self._switcher.model(self._name).backend
        return backend.endpoint if backend else ""

    @reading
    def InFlight(self) -> UInt32:
        return self._switcher.model(self._name).in_flight

    @reading
    def Queued(self) -> UInt32:
        return len(self._switcher.model(self._name).waiters)

    @reading
    def LastUsed(self) -> Double:
        """Unix time; 0 if never since llmuxd was started."""
        return self._switcher.model(self._name).last_used

    @reading
    def ActivatedBy(self) -> String:
        """`restore` or `cold` while it runs, else empty."""
        activation = self._switcher.model(self._name).activation
        return activation.way if activation else ""

    @reading
    def ActivationSeconds(self) -> Double:
        activation = self._switcher.model(self._name).activation
        return activation.seconds if activation else 0.0

    @reading
    def LastActivation(self) -> String:
        """The same, and also of a model that is out; empty if it never ran since the boot."""
        move = self._switcher.model(self._name).came
        return move.way if move else ""

    @reading
    def LastActivationSeconds(self) -> Double:
        move = self._switcher.model(self._name).came
        return move.seconds if move else 0.0

    @reading
    def CheckpointValid(self) -> Bool:
        return not self._switcher.why_no_checkpoint(self._name)

    @reading
    def CheckpointWhyNot(self) -> String:
        return self._switcher.why_no_checkpoint(self._name)

    @reading
    def CheckpointSize(self) -> UInt64:
        """Bytes on disk."""
        record = self._switcher.model(self._name).checkpoint
        return record.size if record else 0

    @reading
    def CheckpointSeconds(self) -> Double:
        record = self._switcher.model(self._name).checkpoint
        return record.seconds if record else 0.0

    @reading
    def CheckpointTaken(self) -> Double:
        """Unix time; 0 if there is none."""
        record = self._switcher.model(self._name).checkpoint
        return record.taken_at if record else 0.0

    @reading
    def CheckpointIdentity(self) -> StringMap:
        """All that must be the same where it is restored."""
        record = self._switcher.model(self._name).checkpoint
        return asdict(record.identity) if record else {}

    @reading
    def LettingGo(self) -> LettingGoRows:
        """The key, its value, and who says so: `config`, `tuned` or `default`."""
        found = self._switcher.letting_go(self._name)
        return [[KEYS[tier], each.sleep, each.why] for tier, each in found.items()]

    @reading
    def Tuning(self) -> FiguresRows:
        """Key, value, seconds out and back, bytes, rounds; why it is out of the question."""
        return [
            [KEYS[f.tier], f.sleep, f.out, f.back, f.size, f.rounds, f.failed]
            for f in self._switcher.figures(self._name)
        ]

    @reading
    def TuningTaken(self) -> Double:
        """Unix time; 0 if there is none."""
        tuning = self._switcher.model(self._name).tuning
        return tuning.made_at if tuning else 0.0

    @reading
    def TuningWhyNot(self) -> String:
        return self._switcher.why_no_tuning(self._name)

    @reading
    def Pinned(self) -> Bool:
        """By its configuration, or by a call since."""
        return self._switcher.model(self._name).pin

    @reading
    def IdleSince(self) -> Double:
        """Unix time; 0 while it answers a request, or where it never had one."""
        model = self._switcher.model(self._name)
        return 0.0 if model.in_flight else model.last_used

    @reading
    def Costs(self) -> Seconds:
        return self._switcher.costs(self._name)

    @reading
    def Restarts(self) -> UInt32:
        """For each time that its server ended by itself."""
        return self._switcher.model(self._name).deaths

    @reading
    def Failures(self) -> UInt32:
        """Starts that failed since the last one that did not."""
        return self._switcher.model(self._name).failures

    @reading
    def LastError(self) -> String:
        return self._switcher.model(self._name).last_error
