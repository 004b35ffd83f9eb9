# SPDX-License-Identifier: MIT
"""The form of what is kept in /var/lib/llmux, and its way from one release to the next.

`form.json` says which form it is; where it is missing, it is the first. llmuxd brings an older one
up to date when it starts, step by step. A newer one it leaves alone: what it does not understand it
would take for nothing, and remove.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from . import files
from .errors import StateTooNew

log = logging.getLogger(__name__)

# Raised with each change that an older release would misread; tests/unit/forms keeps each.
FORM = 1
# From each form the step to the next, in its directory. A step may be cut short, and is then done
# once more: its number is written when it is through.
STEPS: Mapping[int, Callable[[Path], None]] = {}


def form() -> int:
    """Which one is there; StateTooNew where it is none of ours."""
    path = files.state_root() / "form.json"
    if not path.exists():
        return 1
    raw = files.read_json(path)
    found = raw.get("form") if raw is not None else None
    if not isinstance(found, int) or not 1 <= found <= FORM:
        what = f"is of form {found}" if isinstance(found, int) else "does not tell its form"
        raise StateTooNew(f"the state in {path.parent} {what}; this llmuxd knows 1 to {FORM}")
    return found


def bring_up_to_date() -> None:
    """Make it of this release's form; StateTooNew or OSError where that cannot be."""
    root = files.state_root()
    here = form()
    for number in range(here, FORM):
        log.info("bringing %s from form %d to %d", root, number, number + 1)
        STEPS[number](root)
        files.write_json(root / "form.json", {"form": number + 1})
    if not (root / "form.json").exists():
        files.write_json(root / "form.json", {"form": FORM})
