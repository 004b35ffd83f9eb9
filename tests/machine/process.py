# SPDX-License-Identifier: MIT
"""Subprocesses and progress: the one way this package runs a program."""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import MachineError

Argv = Sequence[str | Path]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Says what begins, and how many seconds it took. Silent about what failed: the error is not.

    >>> with step("root: Debian forky"):
    ...     pass
    """
    say(f"{what} ...")
    began = time.monotonic()
    yield
    say(f"{what}: done in {time.monotonic() - began:.1f} s")


def contained(argv: Argv) -> list[str | Path]:
    """Makes argv a command whose processes and mounts are all gone when it ends or we do.

    A builder that is killed must not go on in a place that the next one cleans.
    """
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--propagation", "private"),
        *("--pid", "--fork", "--kill-child", "--mount-proc", "--"),
        *argv,
    ]


def run(
    argv: Argv,
    *,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    hint: str = "",
) -> str:
    """Runs a program to its end and returns what it printed; a failure shows its last words."""
    command = [str(word) for word in argv]
    try:
        done = subprocess.run(
            command,
            stdin=stdin,
            capture_output=True,
            env=env,
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise MachineError(f"{command[0]}: not found", hint) from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()[-15:]
        raise MachineError(
            "\n    ".join([f"{shlex.join(command)}: exit status {done.returncode}", *words]), hint
        )
    return done.stdout.decode(errors="replace")
