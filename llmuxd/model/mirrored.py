# SPDX-License-Identifier: MIT
"""Which units serve models without being theirs, for who has to know whose a process is.

One file in /run/llmux for each, from before the unit's start until after its end.
"""

from pathlib import Path

from .. import files, names


def note(model: str, unit: str) -> None:
    """The unit is about to serve the model."""
    files.write_json(_path(model), {"model": model, "unit": unit})


def unit_of(model: str) -> str:
    """The unit that serves the model; empty where none was noted."""
    return str((files.read_json(_path(model)) or {}).get("unit", ""))


def model_of(unit: str) -> str | None:
    """The reverse; None for a unit that serves none."""
    for path in files.runtime_root().glob("*.mirror.json"):
        raw = files.read_json(path) or {}
        if raw.get("unit") == unit:
            return str(raw.get("model"))
    return None


def forget(model: str) -> None:
    """The unit serves no more."""
    _path(model).unlink(missing_ok=True)


def _path(model: str) -> Path:
    return files.runtime_root() / f"{names.slug(model)}.mirror.json"
