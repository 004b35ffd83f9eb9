# SPDX-License-Identifier: MIT
"""The plan's steps that have llmuxd measure what a model best lets go of, and choose it."""

import json
import subprocess
import time
from typing import Any

from llmuxd.ctl.tuned import FIELDS
from llmuxd.names import object_path
from tests.machine.ring.guest import sh

from . import measure
from .plan import Notes
from .switches import ready, told


def tune(name: str, notes: Notes, **more: Any) -> None:
    """Each way to leave and to come back, what was chosen of them, and the text after that.

    With `image_sleep` among these settings it is parked only, with `park_sleep` images are taken
    only, and it is started anew after them, with what it has compiled before.
    """
    if not measure.HAS_GPU:
        return
    for other in measure.MODELS:
        measure.leave(other)
    ready(notes, (name,), **more)
    _measure(notes, name)
    if "image_sleep" not in more:
        way, seconds = (_property(name, key) for key in ("LastActivation", "LastActivationSeconds"))
        notes.add(f"started anew, {way}", model=name, seconds=float(seconds))
    told(notes, "image back, tuned", name)
    measure.leave(name)


def _property(name: str, key: str) -> str:
    told = sh("busctl", "get-property", "org.llmux", object_path(name), "org.llmux.Model", key)
    return told.partition(" ")[2].strip('"')


def _measure(notes: Notes, name: str) -> None:
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
        shown = json.loads(sh("llmuxctl", "show", "--json", name))
        _note_ways(notes, name, [dict(zip(FIELDS, row, strict=True)) for row in shown["Tuning"]])
        raise
    if not done.stdout:
        raise AssertionError(f"llmuxctl exited with {done.returncode}: {done.stderr}")
    (found,) = json.loads(done.stdout)
    _note_ways(notes, name, found["measured"])
    chosen = {each["key"]: each["value"] for each in found["letting_go"]}
    why = {f"{each['key']} by": each["why"] for each in found["letting_go"]}
    notes.add(
        "tuned", model=name, seconds=time.monotonic() - begin, result=found["result"],
        error=found["error"], **chosen, **why,
    )  # fmt: skip
    if found["result"] != "done":
        raise AssertionError(found["error"])


def _note_ways(notes: Notes, name: str, ways: list[dict[str, Any]]) -> None:
    for way in ways:
        notes.add(
            f"{way['key']} {way['value']}", model=name, key=way["key"], value=way["value"],
            out=way["out"], back=way["back"], GiB=way["size"] / 2**30, rounds=way["rounds"],
            failed=way["failed"],
        )  # fmt: skip
