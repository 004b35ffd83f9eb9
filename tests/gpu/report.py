# SPDX-License-Identifier: MIT
"""From the results of a plan: the tables that the README has, and the goals' lines."""

import json
import statistics
from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Any

from llmuxd.ctl import table
from llmuxd.model.tuning import NEAR
from tests.bench.goals import Goals
from tests.bench.share import share, span

Row = dict[str, Any]

# What is said of one moment by two clocks may differ by so many seconds.
_CLOCKS = 0.05

OPT, QWEN = "facebook/opt-125m", "Qwen/Qwen2.5-3B-Instruct"
# Of llmuxctl check.
GPU_LINES = (
    *("driver", "libcuda", "gpus", "vram", "io_uring"),
    *("cuda-checkpoint", "cuda plugin", "devices"),
)
# From the image, from memory, and from one to the other, beside each other and one by one.
SWITCHES = (
    *("image back", "image switch", "image switch, at once", "parked back", "parked switch"),
    *("both for a moment", "one by one, tier park", "one by one, tier checkpoint"),
)


def main(path: Path) -> int:
    """Print them; the exit status is 1 where a goal was missed or not measured."""
    results = json.loads(path.read_text())
    told = Report(results)
    told.tables()
    return 0 if told.goals() else 1


class Report:
    """What can be said of one run."""

    def __init__(self, results: dict[str, Any]):
        self._results = results
        self.rows: list[Row] = [
            row | {"step": name} for name, step in results["steps"].items() for row in step["rows"]
        ]

    def values(
        self, what: str, key: str, model: str | None = None, step: str | None = None
    ) -> list[float]:
        """Every measurement of this kind."""
        return [
            float(row[key])
            for row in self.rows
            if row["what"] == what
            and key in row
            and model in (None, row.get("model"))
            and step in (None, row["step"])
        ]

    def median(
        self, what: str, key: str, model: str | None = None, step: str | None = None
    ) -> float | None:
        """Its median; None where it was not measured."""
        found = self.values(what, key, model, step)
        return statistics.median(found) if found else None

    def tables(self) -> None:
        """All medians, by kind and model, and the state of each step."""
        print("host: " + ", ".join(f"{k} {v}" for k, v in self._results["host"].items()))
        kinds = {(row["step"], row["what"], row.get("model", "")): None for row in self.rows}
        lines = []
        for step, what, model in kinds:
            rows = [
                row for row in self.rows
                if (row["step"], row["what"], row.get("model", "")) == (step, what, model)
            ]  # fmt: skip
            lines.append((step, what, model, str(len(rows)), ", ".join(_medians(rows))))
        print(table.render(("STEP", "WHAT", "MODEL", "N", "MEDIANS"), lines))
        self._tell_parts()
        self._tell_shares()
        for name, step in self._results["steps"].items():
            if step["state"] != "done":
                print(f"{name}: {step['state']}")

    def goals(self) -> bool:
        """The goals' lines; whether all were met."""
        goals = Goals()
        # In other steps it comes beside one that leaves.
        cold, back = (
            self.median("cold", "end", QWEN),
            self.median("image back", "end", QWEN, "image"),
        )
        _at_most(goals, "image to first completion, Qwen 3B", back, 5.0, " s")
        _at_least(goals, "cold start against image, Qwen 3B", _ratio(cold, back), 12)
        seed, parked = self.median("seed switch", "seconds"), self.median("parked switch", "first")
        _at_most(goals, "parked switch to the first token", parked, 2.5, " s")
        _at_least(goals, "the seed's switch against a parked one", _ratio(seed, parked), 15)
        fit = self.median("both for a moment", "first")
        _at_most(goals, "parked switch where both fit for a moment", fit, 1.5, " s")
        shares = self.shares()
        worst = max(shares, default=None)
        _at_most(goals, "llmuxd's own share of a switch, the worst", worst, 0.2, " s")
        usual = statistics.median(shares) if shares else None
        _at_most(goals, "llmuxd's own share of a switch, the median", usual, 0.2, " s")
        left = self.median("parked, both", "vram_MiB")
        _at_most(goals, "VRAM while both are out, above an empty GPU", self._above(left), 8, " MiB")
        switches = len(self.values("parked switch", "first"))
        _at_least(goals, "parked switches", switches, 20)
        wrong = sum(not row["same"] for row in self.rows if "same" in row)
        mismatches = sum(self.values("canary", "mismatches"))
        _at_most(goals, "wrong texts and canary mismatches", wrong + mismatches, 0, "")
        lines = [row["lines"] for row in self.rows if row["what"] == "check"]
        bad = [line for told in lines for line in GPU_LINES if not told[line].startswith("ok")]
        _at_most(goals, "check: lines of the GPU not ok", len(bad) if lines else None, 0, "")
        gone = [row for row in self.rows if row["what"] == "check, taken away"]
        green = None if not gone else sum(not row.get("red") for row in gone)
        _at_most(goals, f"check: of {len(gone)} things taken away not told", green, 0, "")
        self._tuned(goals)
        return goals.all_met

    def _tuned(self, goals: Goals) -> None:
        """What was chosen of each model, against what was measured of it."""
        chosen = [row for row in self.rows if row["what"] == "tuned" and row["result"] == "done"]
        parks = [row for row in chosen if row["park_sleep by"] == "tuned"]
        worst = max(map(self._against_best, parks), default=None)
        name = "tune: round trip of the park that was chosen against the fastest"
        _at_most(goals, name, worst, NEAR, "")
        images = [row for row in chosen if row["image_sleep by"] == "tuned"]
        others = sum(row["image_sleep"] != "2" for row in images) if images else None
        _at_most(goals, "tune: images of another level than 2", others, 0, "")

    def _against_best(self, chosen: Row) -> float:
        """The round trip of the way to park that was chosen, in those of the fastest one."""
        trips = {
            row["value"]: float(row["out"]) + float(row["back"])
            for row in self.rows
            if row.get("key") == "park_sleep"
            and row["model"] == chosen["model"]
            and not row["failed"]
        }
        return trips.get(chosen["park_sleep"], inf) / min(trips.values(), default=1.0)

    def shares(self) -> list[float]:
        """What was llmuxd's own of each switch, in seconds.

        The time to the first token, without what others took of it, without an answer of a warm
        engine, and without what the policy waits by its own rule.
        """
        return [_share(row) - _kept(row) - self._warm(row) for row in self._switches()]

    def _switches(self) -> list[Row]:
        return [
            row for row in self.rows
            if row["what"] in SWITCHES and row.get("moves") and "asked" in row
        ]  # fmt: skip

    def _tell_parts(self) -> None:
        """What each way in and out of a switch was made of."""
        parts: dict[tuple[str, str, str], list[dict[str, float]]] = {}
        for row in self.rows:
            for move in row.get("moves", ()):
                way = f"{move['direction']}, {move['way']}"
                key = str(row["what"]), str(move["model"]), way
                parts.setdefault(key, []).append(move["parts"])
        lines = [(*key, str(len(found)), _medians(found)) for key, found in parts.items()]
        header = ("SWITCH", "MODEL", "WAY", "N", "PARTS")
        print(table.render(header, [(*line[:-1], ", ".join(line[-1])) for line in lines]))

    def _tell_shares(self) -> None:
        """Of each kind of switch; and what was taken off for the policy's patience."""
        kinds = {row["what"]: None for row in self._switches()}
        both = list(zip(self._switches(), self.shares(), strict=True))
        for kind in kinds:
            found = [own for row, own in both if row["what"] == kind]
            print(
                f"own share, {kind}: {statistics.median(found):.3f} s in the median of"
                f" {len(found)}, {max(found):.3f} at worst"
            )
        for row in self._switches():
            if _kept(row):
                print(
                    f"not in it, {row['what']}, {row['model']}: {_kept(row):.2f} s for which the"
                    " policy, by what it had learnt before, kept an idle model for its next request"
                )

    def _warm(self, row: Row) -> float:
        return self.median("warm", "first", row["model"]) or 0.0

    def _above(self, value: float | None) -> float | None:
        empty = self.median("before", "vram_MiB")
        return None if value is None or empty is None else value - empty


def _share(row: Row) -> float:
    asked = float(row["asked"])
    return share(asked, asked + float(row["first"]), row["moves"])


def _kept(row: Row) -> float:
    """Seconds of the policy's patience (patience.py), where the switch did begin no sooner."""
    due = float(row.get("kept_until", 0.0)) - float(row["asked"])
    began = min(span(move)[0] for move in row["moves"]) - float(row["asked"])
    return min(due, began) if 0.0 < due <= began + _CLOCKS else 0.0


def _medians(rows: Iterable[Row]) -> list[str]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("what", "step", "model", "moves", "text", "asked"):
                found.setdefault(key, []).append(value)
    told = []
    for key, values in found.items():
        if all(isinstance(value, bool) for value in values):
            told.append(f"{key} {sum(values)}/{len(values)}")
        elif all(isinstance(value, int | float) for value in values):
            told.append(f"{key} {statistics.median(values):.4g}")
        else:
            told.append(f"{key} {values[-1]}")
    return told


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if not one or not other else one / other


def _at_most(goals: Goals, name: str, value: float | None, bound: float, unit: str) -> None:
    met = value is not None and value <= bound
    goals.line(name, _said(value, unit), f"at most {bound:g}{unit}", met)


def _at_least(goals: Goals, name: str, value: float | None, bound: float) -> None:
    goals.line(name, _said(value, ""), f"at least {bound:g}", value is not None and value >= bound)


def _said(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:.3g}{unit}"
