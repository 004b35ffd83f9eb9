# SPDX-License-Identifier: MIT
"""llmuxctl check --fix: do what is safe to do about what a check found, each change shown first."""

import sys
from pathlib import Path

from ..errors import NotChanged
from . import check
from .checks.host import Host
from .checks.result import Result


def run(path: Path, *, ask: bool, host: Host | None = None) -> list[Result]:
    """Check, change and check again, until nothing is left that can be changed.

    `ask`: before each, and only a yes is one; nobody is asked twice.
    """
    host = host or Host()
    tried: set[Result] = set()
    while True:
        # One change can let the next check see what is wrong there.
        results = check.run(path, host)
        wanted = [each for each in results if each.changes and each not in tried]
        if not wanted:
            return results
        for result in wanted:
            tried.add(result)
            _mend(result, host, ask=ask)


def _mend(result: Result, host: Host, *, ask: bool) -> None:
    print(check.line(result), *result.changes, sep="\n", file=sys.stderr, flush=True)
    if ask and not _agreed():
        return
    try:
        for change in result.changes:
            change.make(host)
    except NotChanged as error:
        print(f"llmuxctl: {error}", file=sys.stderr)


def _agreed() -> bool:
    print("do this? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
