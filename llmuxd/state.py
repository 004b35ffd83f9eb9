# SPDX-License-Identifier: MIT
"""A model's state, derived from what was observed and never stored beside it."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What users see."""

    COLD = "cold"
    CHECKPOINTED = "checkpointed"
    PARKED = "parked"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class UnitStatus:
    """What systemd says of a unit; the words are systemd's own."""

    active: str = "inactive"
    sub: str = "dead"
    freezer: str = "running"
    result: str = "success"
    text: str = ""

    @property
    def frozen(self) -> bool:
        """Whether its processes are stopped by the cgroup freezer."""
        return self.freezer in ("frozen", "freezing", "frozen-by-parent")

    @property
    def up(self) -> bool:
        """Whether its server runs."""
        return self.active in ("active", "reloading", "refreshing")

    @property
    def down(self) -> bool:
        """Whether it has no process left."""
        return self.active in ("inactive", "failed")


def derive(unit: UnitStatus, *, has_checkpoint: bool, leaving: bool, parked: bool = False) -> State:
    """The state of a model whose unit is `unit`.

    `leaving`: the switcher drains the model or has asked systemd to end it. `parked`: its container
    is frozen, by the record of its unit's helper.
    """
    if unit.up:
        if unit.frozen or parked:
            return State.PARKED
        return State.DRAINING if leaving else State.SERVING
    match unit.active:
        case "failed":
            return State.FAILED
        case "deactivating":
            return State.DRAINING
        case "inactive" | "maintenance":
            return State.CHECKPOINTED if has_checkpoint else State.COLD
        case _:
            # activating, and what a newer systemd may add: it is on its way.
            return State.STARTING
