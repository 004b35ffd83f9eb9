# SPDX-License-Identifier: MIT
"""llmuxctl pin, unpin, reload, version and check: one question, one answer."""

import argparse
import asyncio
import contextlib

from .. import __version__, accepted
from ..errors import LlmuxError
from .daemon import CallFailed, Daemon
from .exits import Exit
from .models import print_json


async def reload(arguments: argparse.Namespace) -> int:
    """Have llmuxd read its configuration again; a mistake in it is told here."""
    async with Daemon(arguments.host) as daemon:
        await daemon.manager("Reload")
    if arguments.json:
        print_json({"reloaded": True})
    return Exit.DONE


async def pin(arguments: argparse.Namespace) -> int:
    """Whether a model may leave for another one, until llmuxd is restarted."""
    async with Daemon(arguments.host) as daemon:
        await daemon.manager(arguments.command.capitalize(), arguments.model)
        if arguments.json:
            model = await daemon.model(arguments.model)
            print_json({"model": model["Name"], "pinned": model["Pinned"]})
    return Exit.DONE


async def version(arguments: argparse.Namespace) -> int:
    """Of this program, and of the llmuxd that runs."""
    running = ""
    # A host that cannot be reached is not one where llmuxd does not run.
    with contextlib.suppress(CallFailed if arguments.host else LlmuxError):
        async with Daemon(arguments.host, start=False) as daemon:
            running = await daemon.version()
    if arguments.json:
        print_json({"llmuxctl": __version__, "llmuxd": running or None})
    else:
        print(f"llmuxctl {__version__}\nllmuxd {running or 'does not run'}")
    return Exit.DONE


async def check(arguments: argparse.Namespace) -> int:
    """Whether this host has what llmuxd needs."""
    from . import check as checks
    from . import fix

    path = arguments.config or accepted.path()
    if arguments.fix:
        results = await asyncio.to_thread(fix.run, path, ask=not arguments.yes)
    else:
        results = await asyncio.to_thread(checks.run, path)
    if arguments.json:
        print_json([checks.to_json(result) for result in results])
    else:
        print("\n".join(checks.line(result) for result in results))
    return Exit.FAILED if any(result.failed for result in results) else Exit.DONE
