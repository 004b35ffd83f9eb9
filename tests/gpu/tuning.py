# SPDX-License-Identifier: MIT
"""The plan's steps that have llmuxd measure what a model best lets go of, and choose it."""

import json
import subprocess
import time
from typing import Any

from tests.machine.ring.guest import sh

from . import measure
from .measure import configure
from .plan import Notes
from .switches import told


def tune(name: str, notes: Notes, **more: Any) -> None:
    """Each way to leave and to come back, what was chosen of them, and the text after that.

    With `image_sleep` among these settings it is parked only: each image takes its time.
    """
    if not measure.HAS_GPU:
        return
    configure(**more)
    _note(notes, name, *_measure(name))
    told(notes, "image back, tuned", name)
    measure.leave(name)


def _measure(name: str) -> tuple[float, dict[str, Any]]:
    """The seconds that it took, and what llmuxctl says of it."""
    begin = time.monotonic()
    try:
        done = subprocess.run(
            ["llmuxctl", "warmup", "--tune", "--json", name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except SystemExit:
        # The step is out of time, and the next one is to have the GPU for itself.
        jobs = json.loads(sh("llmuxctl", "jobs", "--json"))
        sh("llmuxctl", "cancel", *(job["Job"].rpartition("/")[2] for job in jobs), check=False)
        raise
    if not done.stdout:
        raise AssertionError(f"llmuxctl exited with {done.returncode}: {done.stderr}")
    (found,) = json.loads(done.stdout)
    return time.monotonic() - begin, found


def _note(notes: Notes, name: str, seconds: float, found: dict[str, Any]) -> None:
    for way in found.get("measured", ()):
        notes.add(
            f"{way['key']} {way['value']}", model=name, key=way["key"], value=way["value"],
            out=way["out"], back=way["back"], GiB=way["size"] / 2**30, rounds=way["rounds"],
            failed=way["failed"],
        )  # fmt: skip
    chosen = {each["key"]: each["value"] for each in found.get("letting_go", ())}
    why = {f"{each['key']} by": each["why"] for each in found.get("letting_go", ())}
    notes.add(
        "tuned", model=name, seconds=seconds, result=found["result"], error=found["error"],
        **chosen, **why,
    )  # fmt: skip
    if found["result"] != "done":
        raise AssertionError(found["error"])
