# SPDX-License-Identifier: MIT
"""What a model lets go of before it leaves its GPU, and what was measured of that."""

from collections.abc import Mapping
from typing import Any

from . import table

HEADER = ("KEY", "VALUE", "OUT", "BACK", "SIZE", "ROUNDS", "")
# Of a row of org.llmux.Model's Tuning, as --json names them.
FIELDS = ("key", "value", "out", "back", "size", "rounds", "failed")


def letting_go(model: Mapping[str, Any]) -> str:
    """What is in force, and who says so."""
    return ", ".join(f"{key} {value} ({why})" for key, value, why in model["LettingGo"])


def when(model: Mapping[str, Any]) -> str:
    """When it was measured, and why that is not used if it is not; empty where it never was."""
    taken, why_not = table.moment(model["TuningTaken"]), model["TuningWhyNot"]
    return f"{taken}; not used: {why_not}" if taken and why_not else taken


def lines(name: str, model: Mapping[str, Any]) -> list[str]:
    """A table of what was measured, and what was chosen; one line where there was nothing."""
    if model["TuningWhyNot"]:
        return [f"{name}: nothing to tune: {model['TuningWhyNot']}"]
    return [*_table(model), f"{name}: {letting_go(model)}"]


def so_far(model: Mapping[str, Any]) -> list[str]:
    """The table of one that did not get to its end; nothing where nothing was measured."""
    return _table(model) if model["Tuning"] else []


def to_json(model: Mapping[str, Any]) -> dict[str, Any]:
    """The same, to add to the job's outcome."""
    return {
        "letting_go": [
            {"key": key, "value": value, "why": why} for key, value, why in model["LettingGo"]
        ],
        "measured": [dict(zip(FIELDS, row, strict=True)) for row in model["Tuning"]],
        "why_not": model["TuningWhyNot"],
    }


def _table(model: Mapping[str, Any]) -> list[str]:
    rows = [
        (key, value, *_seconds(out, back, rounds), table.size(size), str(rounds), failed)
        for key, value, out, back, size, rounds, failed in model["Tuning"]
    ]
    return table.lines(HEADER, rows)


def _seconds(out: float, back: float, rounds: int) -> tuple[str, str]:
    return (f"{out:.2f} s", f"{back:.2f} s") if rounds else ("-", "-")
