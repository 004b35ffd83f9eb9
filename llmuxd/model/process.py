# SPDX-License-Identifier: MIT
"""One way to run a command: clean environment, no input, output kept, a log line to paste."""

import logging
import os
import re
import shlex
import subprocess
from collections.abc import Sequence

log = logging.getLogger(__name__)

# podman needs these and nothing else of what a unit has.
_PASSED = ("PATH", "HOME", "INVOCATION_ID", "NOTIFY_SOCKET", "CONTAINERS_CONF", "TMPDIR")


# ECMA-48's control sequences, and single control characters.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# As timeout(1) has it.
TIMED_OUT = 124


class CommandFailed(Exception):
    """A command's exit status was not 0. `reason` is the one line worth telling."""

    def __init__(self, argv: Sequence[str], status: int, reason: str):
        super().__init__(f"{' '.join(argv[:3])}: {reason}")
        self.status = status
        self.reason = reason


def run(argv: Sequence[str], timeout: float, *, merge: bool = False) -> str:
    """Run `argv`, return its standard output; CommandFailed where it failed or took too long.

    `merge`: standard error is part of the output.
    """
    log.debug("+ %s", shlex.join(argv))
    env = {key: os.environ[key] for key in _PASSED if key in os.environ}
    env["LC_ALL"] = "C.UTF-8"
    # podman talks to systemd for a container that has a socket to notify: ours is not its.
    env.pop("NOTIFY_SOCKET", None)
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=env,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CommandFailed(argv, TIMED_OUT, f"it did not end within {timeout:g} s") from None
    except OSError as error:
        raise CommandFailed(argv, 127, f"{argv[0]}: {error.strerror}") from None
    stderr = done.stderr.decode(errors="replace")
    log.debug("%s", stderr.strip())
    if done.returncode != 0:
        raise CommandFailed(argv, done.returncode, _reason(stderr))
    output = done.stdout + done.stderr if merge else done.stdout
    return output.decode(errors="replace")


def plain(text: str) -> str:
    """The text without colours and other control characters: it is shown on terminals."""
    return _CONTROL.sub("", text)


def _reason(stderr: str) -> str:
    """The cause in podman's error text.

    CRIU's harmless line about RLIMIT_NOFILE often comes last, behind the cause.
    """
    lines = [line for raw in stderr.splitlines() if (line := plain(raw).strip())]
    telling = [line for line in lines if "RLIMIT_NOFILE" not in line]
    errors = [line for line in telling if "rror" in line]
    chosen = (errors or telling or lines or ["no output"])[-1]
    return chosen.removeprefix("Error: ")[:500]
