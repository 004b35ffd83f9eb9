# SPDX-License-Identifier: MIT
"""What of a switch was llmuxd's own doing, by what its units' helpers noted of their moves.

Compared with nothing but itself: what podman, CRIU, the driver, systemd's freezer and the engine
took in that very switch is taken off, whatever its image's size, and wherever that was read from.
"""

import json
from pathlib import Path
from typing import Any

# Comparing an image's record with this host and its files, and closing the container's network.
OWN_PARTS = ("look", "close")

Move = dict[str, Any]


def moves(since: float) -> list[Move]:
    """The ways out and in that ended since that Unix time, with their parts in seconds."""
    found = []
    for path in sorted(Path("/run/llmux").glob("*.json")):
        slug, _, direction = path.stem.rpartition(".")
        if direction in ("in", "out"):
            told = json.loads(path.read_text())
            if float(told["ended"]) >= since:
                found.append({"model": slug, "direction": direction, **told})
    return sorted(found, key=lambda move: float(move["ended"]))


def share(asked: float, answered: float, made: list[Move]) -> float:
    """Seconds of the switch that was asked for, and answered, at these Unix times.

    Of the ways out those count for theirs that began before the way in did: what leaves beside it
    nobody waits for. Nor does anybody for what one had behind it when the switch was asked for. The
    answer itself is not taken off.
    """
    ways_in = [span(move) for move in made if move["direction"] == "in"]
    came = max(begin for begin, _ in ways_in) if ways_in else answered
    ours, reached = 0.0, asked
    for move in sorted(made, key=span):
        begin, end = span(move)
        if move["direction"] == "out":
            end = min(end, came)
        if end <= max(begin, asked):
            continue
        ours += max(0.0, begin - reached) + own(move) - _before(asked, move)
        reached = max(reached, end)
    return ours + max(0.0, answered - reached)


def _before(asked: float, move: Move) -> float:
    """Seconds that `own` has of the parts that were over by then, whatever lay between them.

    The parts are in their order. What has no name may all have come after them.
    """
    ours, end = 0.0, span(move)[1] - sum(float(took) for took in move["parts"].values())
    for part, took in move["parts"].items():
        end += float(took)
        if end > asked:
            break
        ours += float(took) if part in OWN_PARTS else 0.0
    return ours


def span(move: Move) -> tuple[float, float]:
    """When it began and ended, in Unix time."""
    ended = float(move["ended"])
    return ended - float(move["seconds"]), ended


def own(move: Move) -> float:
    """What of a way out or in was llmuxd's own doing: looking things up, and what has no name."""
    others = sum(float(took) for part, took in move["parts"].items() if part not in OWN_PARTS)
    return float(move["seconds"]) - others
