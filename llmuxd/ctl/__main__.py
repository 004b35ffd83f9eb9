# SPDX-License-Identifier: MIT
"""llmuxctl: see and steer the models of this host."""

import argparse
import asyncio
import importlib
import os
import sys
from collections.abc import Awaitable, Callable

from ..errors import ConfigInvalid, LlmuxError
from .arguments import LOCAL, parser
from .exits import Exit

Command = Callable[[argparse.Namespace], Awaitable[int]]


def main() -> int:
    """Entry point; exit status 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    words = parser()
    arguments = words.parse_args()
    if arguments.host and arguments.command in LOCAL:
        words.error(f"{arguments.command} looks at this host only: log in there for it")
    try:
        return asyncio.run(_run(arguments))
    except ConfigInvalid as error:
        print(f"llmuxctl: {error}", file=sys.stderr)
        return Exit.USAGE
    except LlmuxError as error:
        print(f"llmuxctl: {error}", file=sys.stderr)
        return Exit.FAILED
    except ModuleNotFoundError as error:
        if (error.name or __package__).partition(".")[0] == "llmuxd":
            raise
        print(f"llmuxctl: Python has no {error.name}: install it (README.md, What it needs)",
              file=sys.stderr)  # fmt: skip
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED


async def _run(arguments: argparse.Namespace) -> int:
    return await function(arguments.run)(arguments)


def function(name: str) -> Command:
    """The function that is called `module:name` in this package."""
    module, _, attribute = name.partition(":")
    found: Command = getattr(importlib.import_module(f".{module}", __package__), attribute)
    return found


if __name__ == "__main__":
    sys.exit(main())
