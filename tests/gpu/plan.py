# SPDX-License-Identifier: MIT
"""The plan's runner: steps, each with a time limit, and one file of results that grows.

A step that is done is not done again, so a plan that was cut short goes on where it was. Each
step runs in a process of its own, which writes what it measures as it goes: one that runs out of
time keeps what it had.
"""

import gzip
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SELF = "tests.gpu.inside"
_DONE = "done"
_GRACE = 20.0


@dataclass(frozen=True)
class Step:
    """One step; `seconds` is its limit, `takes` what is expected. `act` notes what it measures.

    Without a vital one those after it make no sense. None is begun that has less time than it
    takes: there may be a shorter one behind it.
    """

    name: str
    seconds: float
    act: Callable[["Notes"], None]
    vital: bool = False
    takes: float = 20.0


@dataclass
class Notes:
    """What one step has to tell: measurements, in the order in which they were made."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, what: str, **more: Any) -> None:
        """Keep one measurement, at once."""
        self.rows.append({"what": what, **more})
        _write(self.path, {"rows": self.rows})
        print(f"  {what}: " + ", ".join(f"{key} {_short(more[key])}" for key in more), flush=True)

    def keep(self, name: str, file: Path) -> str:
        """Keep a copy of a large text beside the results, packed; what it is called there."""
        number = len(list(self.path.parent.glob(f"*.{name}.*.gz"))) + 1
        stem = self.path.name.partition(".")[0]
        kept = self.path.with_name(f"{stem}.{name}.{number:03}.gz")
        with file.open("rb") as source, gzip.open(kept, "wb") as target:
            shutil.copyfileobj(source, target)
        return kept.name


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def run(steps: Sequence[Step], results: Path, budget: float, facts: dict[str, Any]) -> None:
    """Go through `steps`, as far as `budget` seconds reach; what came out is in `results`."""
    end = time.monotonic() + budget
    told = json.loads(results.read_text()) if results.exists() else {"steps": {}}
    told["host"] = facts
    for step in steps:
        if told["steps"].get(step.name, {}).get("state") == _DONE:
            continue
        left = end - time.monotonic()
        if left < step.takes:
            print(f"{step.name}: {left:.0f} s are too few for it", flush=True)
            continue
        told["steps"][step.name] = _perform(step, min(step.seconds, left), results)
        _write(results, told)
        if step.vital and told["steps"][step.name]["state"] != _DONE:
            return


def _perform(step: Step, limit: float, results: Path) -> dict[str, Any]:
    begin = time.monotonic()
    print(f"{step.name}, at most {limit:.0f} s", flush=True)
    notes = results.with_name(f"{step.name}.notes.json")
    log = results.with_name(f"{step.name}.log")
    with log.open("ab") as words:
        # unbuffered: what a killed step said last is what one wants to read
        command = [
            sys.executable,
            "-u",
            "-B",
            "-m",
            _SELF,
            "--one",
            step.name,
            "--notes",
            str(notes),
        ]
        with subprocess.Popen(command, stdout=words, stderr=words) as running:
            try:
                status = running.wait(limit)
                state = _DONE if status == 0 else f"failed ({status}): {_last_word(log)}"
            except subprocess.TimeoutExpired:
                state = f"ran out of {limit:.0f} s"
                _end(running)
    seconds = time.monotonic() - begin
    rows = json.loads(notes.read_text())["rows"] if notes.exists() else []
    print(f"{step.name}: {state} after {seconds:.1f} s", flush=True)
    return {"state": state, "seconds": round(seconds, 1), "rows": rows}


def _end(running: subprocess.Popen[bytes]) -> None:
    """By a signal at which it puts back what it took away."""
    running.terminate()
    try:
        running.wait(_GRACE)
    except subprocess.TimeoutExpired:
        running.kill()


def _last_word(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").strip().splitlines()[-1:])[:500]


def _write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all: the process may be killed at any time."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)
