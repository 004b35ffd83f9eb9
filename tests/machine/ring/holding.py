# SPDX-License-Identifier: MIT
"""A program that waits before it does anything, for as long as a test wants it to."""

from collections.abc import Callable, Iterator
from pathlib import Path

HOLD = Path("/run/hold-program")
HELD = Path("/run/program-is-held")


def held(program: Path, real: str, first: str) -> Iterator[Callable[[], None]]:
    """What is called so, with that first argument, waits for as long as it is held."""
    program.write_text(
        f"""#!/bin/sh
if [ "$1" = {first} ] && [ -e {HOLD} ]; then
    touch {HELD}
    while [ -e {HOLD} ]; do sleep 0.02; done
fi
exec {real} "$@"
"""
    )
    program.chmod(0o755)
    yield HOLD.touch
    for path in (program, HOLD, HELD):
        path.unlink(missing_ok=True)
