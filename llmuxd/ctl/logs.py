# SPDX-License-Identifier: MIT
"""llmuxctl logs: the journal of a model's unit, by journalctl, which ends as it likes."""

import argparse
import contextlib
import os
import shlex
import sys

from .. import accepted, config, names
from ..errors import LlmuxError
from .daemon import CallFailed, Daemon
from .remote import no_ssh, ssh


class NoJournal(LlmuxError):
    """What reads it is not there."""


async def logs(arguments: argparse.Namespace) -> int:
    """Become journalctl."""
    command = ["journalctl", "--unit", names.unit(await _resolved(arguments))]
    if arguments.follow:
        command.append("--follow")
    if arguments.json:
        command.append("--output=json")
    if arguments.host:
        # ssh hands its words to a shell.
        command = [*ssh(arguments.host), shlex.join(command)]
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        if arguments.host:
            raise no_ssh() from None
        raise NoJournal("there is no journalctl here", "it comes with systemd") from None


async def _resolved(arguments: argparse.Namespace) -> str:
    """The model behind an alias. One that is not known any more may still have a journal."""
    model: str = arguments.model
    # A host that cannot be reached has no journal either.
    with contextlib.suppress(CallFailed if arguments.host else LlmuxError):
        async with Daemon(arguments.host, start=False) as daemon:
            return str((await daemon.model(model))["Name"])
    if not arguments.host:
        with contextlib.suppress(LlmuxError):
            return config.load(accepted.path()).resolve(model)
    print(f"llmuxctl: no model {model!r} is known here; its journal, if any:", file=sys.stderr)
    return model
