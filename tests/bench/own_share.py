# SPDX-License-Identifier: MIT
"""make bench-share: what of a switch is llmuxd's own, part by part, where there is no GPU.

By the measure of share.py, with engines that have nothing to do: two fakes that want
one place. BEFORE OUT and BEFORE IN are from the request to the begin of ExecStop's work, or of
ExecStart's where nobody leaves first, BETWEEN is from the end of the one to the begin of the other,
AFTER from the end of ExecStart's to the first token. What `podman` says and does is not in it, but
in TOTAL, from the request to the first token: what goes on beside it is in no other column.
Runs in the test machine.
"""

import statistics
import sys
import time
from collections.abc import Callable

from llmuxd.ctl import table
from tests.gpu import measure
from tests.machine.ring import guest
from tests.machine.ring.guest import OPT, QWEN, sh

from .share import Move, moves, own, share, span

ROUNDS = 2
MODELS = (OPT, QWEN)
Kind = dict[str, list[dict[str, float]]]


def main() -> int:
    """Measure each way, print the medians in ms."""
    guest.require_machine()
    found: Kind = {}
    try:
        guest.two_fakes(snapshot="pristine")
        sh("llmuxctl", "warmup")
        _rounds(found, "from the image", lambda name: _alone())
        _rounds(found, "one by one", lambda name: _settled())
        _rounds(found, "at once, leaving itself", _turned_back)
        # One is not let in beside another where nobody knows what it takes of a device.
        guest.two_fakes(snapshot="pristine", devices=["/dev/null"])
        sh("llmuxctl", "warmup")
        measure.ask(MODELS[-1])
        _rounds(found, "the other first", lambda name: _settled())
        guest.two_fakes(snapshot="pristine", tier="park")
        for name in MODELS:
            guest.complete(name)
        _rounds(found, "parked", lambda name: _settled())
    finally:
        guest.stop_everything()
        guest.wipe()
    columns = ("total", "share", "before out", "out", "between", "before in", "in", "after")
    lines = [
        (what, str(len(rows)), *(_median(rows, column) for column in columns))
        for what, rows in found.items()
    ]
    print(table.render(("WAY (ms)", "N", *map(str.upper, columns)), lines))
    return 0


def _rounds(found: Kind, what: str, prepare: Callable[[str], None]) -> None:
    for _ in range(ROUNDS):
        for name in MODELS:
            prepare(name)
            asked = time.time()
            first = measure.ask(name).first
            found.setdefault(what, []).append(_parts(asked, asked + first, moves(asked)))


def _alone() -> None:
    """Everything in its image."""
    for name in MODELS:
        measure.leave(name)


def _settled() -> None:
    """Nothing is under way."""
    rest = ("checkpointed", "parked", "cold")
    guest.eventually(
        lambda: sorted(guest.state(name) in rest for name in MODELS) == [False, True],
        "one serves, and the other has left",
    )


def _turned_back(name: str) -> None:
    """The model that is asked for next has just begun to leave for the other."""
    other = next(each for each in MODELS if each != name)
    _settled()
    if guest.state(name) != "serving":
        measure.ask(name)
        _settled()
    measure.ask(other)


def _parts(asked: float, answered: float, made: list[Move]) -> dict[str, float]:
    """Where the share comes from, in seconds; the rest is podman's, CRIU's and the engine's."""
    parts = {"total": answered - asked, "share": share(asked, answered, made)}
    ins = [move for move in made if move["direction"] == "in"]
    begins = max((span(move)[0] for move in ins), default=answered)
    outs = [move for move in made if move["direction"] == "out" and span(move)[0] < begins]
    reached = asked
    if outs:
        out = max(outs, key=span)
        parts |= {"before out": span(out)[0] - asked, "out": own(out)}
        reached = span(out)[1]
        parts["between"] = begins - reached
    elif ins:
        parts["before in"] = begins - asked
    if ins:
        last = max(ins, key=span)
        parts |= {"in": own(last), "after": answered - span(last)[1]}
    return parts


def _median(rows: list[dict[str, float]], column: str) -> str:
    values = [row[column] for row in rows if column in row]
    return f"{statistics.median(values) * 1000:.0f}" if values else "-"


if __name__ == "__main__":
    sys.exit(main())
