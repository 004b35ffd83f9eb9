# SPDX-License-Identifier: MIT
"""llmuxctl logs: the journal of a model's unit, by journalctl, which ends as it likes."""

import argparse
import contextlib
import os
import shlex
import sys

from .. import accepted, config, names
from ..errors import LlmuxError
from .daemon import Daemon
from .remote import ssh


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
    os.execvp(command[0], command)


async def _resolved(arguments: argparse.Namespace) -> str:
    """The model behind an alias. One that is not known any more may still have a journal."""
    model: str = arguments.model
    with contextlib.suppress(LlmuxError):
        async with Daemon(arguments.host, start=False) as daemon:
            return str((await daemon.model(model))["Name"])
    if not arguments.host:
        with contextlib.suppress(LlmuxError):
            return config.load(accepted.path()).resolve(model)
    print(f"llmuxctl: no model {model!r} is known here; its journal, if any:", file=sys.stderr)
    return model
