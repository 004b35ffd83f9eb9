# SPDX-License-Identifier: MIT
"""One way to run a command: clean environment, no input, output kept, a log line to paste."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import loggers

log = loggers.named(__name__)

# podman needs these and nothing else of what a unit has.
_PASSED = ("PATH", "HOME", "INVOCATION_ID", "NOTIFY_SOCKET", "CONTAINERS_CONF", "TMPDIR")


# ECMA-48's control sequences, and single control characters.
_CONTROL = r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
# As timeout(1) has it.
TIMED_OUT = 124


class CommandFailed(Exception):
    """A command's exit status was not 0. `reason` is the one line worth telling."""

    def __init__(self, argv: Sequence[str], status: int, reason: str):
        super().__init__(f"{' '.join(argv[:3])}: {reason}")
        self.status = status
        self.reason = reason


def run(
    argv: Sequence[str],
    timeout: float,
    *,
    merge: bool = False,
    meanwhile: Callable[[], None] = lambda: None,
) -> str:
    """Run `argv`, return its standard output; CommandFailed where it failed or took too long.

    `merge`: standard error is part of the output. `meanwhile` is done once it runs; what it says
    then should be no more than a pipe holds. Where that fails, it is no fault of the command's.
    """
    log.debug("+ %s", shlex.join(argv))
    env = {key: os.environ[key] for key in _PASSED if key in os.environ}
    env["LC_ALL"] = "C.UTF-8"
    # podman talks to systemd for a container that has a socket to notify: ours is not its.
    env.pop("NOTIFY_SOCKET", None)
    try:
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        ) as running:
            try:
                _attempt(meanwhile)
                stdout, raw = running.communicate(timeout=timeout)
            except BaseException:
                running.kill()
                raise
    except subprocess.TimeoutExpired:
        raise CommandFailed(argv, TIMED_OUT, f"it did not end within {timeout:g} s") from None
    except OSError as error:
        raise CommandFailed(argv, 127, f"{argv[0]}: {error.strerror}") from None
    stderr = raw.decode(errors="replace")
    log.debug("%s", stderr.strip())
    if running.returncode != 0:
        raise CommandFailed(argv, running.returncode, _reason(stderr))
    output = stdout + raw if merge else stdout
    return output.decode(errors="replace")


def _attempt(meanwhile: Callable[[], None]) -> None:
    try:
        meanwhile()
    except Exception as error:
        # Whoever needs what was to be done comes to that by himself, and what runs goes on.
        log.warning("%s: %s", type(error).__name__, error)


def program(name: str) -> Path:
    """The file that is run by that name; one that is not there where there is none.

    shutil has it too, and takes milliseconds to load.
    """
    places = (Path(directory, name) for directory in os.get_exec_path())
    found = (path for path in places if path.is_file() and os.access(path, os.X_OK))
    return next(found, Path("/nonexistent"))


def plain(text: str) -> str:
    """The text without colours and other control characters: it is shown on terminals."""
    return re.sub(_CONTROL, "", text)


def _reason(stderr: str) -> str:
    """The cause in podman's error text.

    CRIU's harmless line about RLIMIT_NOFILE often comes last, behind the cause.
    """
    lines = [line for raw in stderr.splitlines() if (line := plain(raw).strip())]
    telling = [line for line in lines if "RLIMIT_NOFILE" not in line]
    errors = [line for line in telling if "rror" in line]
    chosen = (errors or telling or lines or ["no output"])[-1]
    return chosen.removeprefix("Error: ")[:500]
