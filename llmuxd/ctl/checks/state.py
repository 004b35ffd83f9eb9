# SPDX-License-Identifier: MIT
"""What earlier runs of llmuxd have left in /var/lib/llmux."""

import json
from pathlib import Path

from ... import files, stored
from ...errors import StateTooNew
from .look import Look
from .result import Result, fail, ok


def state(look: Look) -> Result:
    """It is of a form that this llmuxd knows."""
    root = Path(files.STATE_DIRECTORY)
    text = look.host.read(str(root / "form.json"))
    if text is None:
        return ok("state", _to_be(1) if look.host.exists(str(root / "checkpoints")) else "none yet")
    try:
        raw = json.loads(text)
    except ValueError:
        raw = None
    try:
        form = stored.told_by(raw if isinstance(raw, dict) else None, root)
    except StateTooNew as error:
        return fail("state", error.message, error.hint_text)
    return ok("state", f"{root}, form {form}" if form == stored.FORM else _to_be(form))


def _to_be(form: int) -> str:
    return f"{files.STATE_DIRECTORY}, form {form}, which llmuxd makes {stored.FORM} as it starts"
