# SPDX-License-Identifier: MIT
"""llmuxctl: see and steer the models of this host."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from enum import IntEnum
from pathlib import Path

from .. import __version__, config, names
from ..errors import ConfigInvalid, LlmuxError
from . import table
from .daemon import Daemon


class Exit(IntEnum):
    """Exit statuses."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


Command = Callable[[argparse.Namespace], Awaitable[int]]

_JOBS = {
    "switch": ("Switch", "make a model serve"),
    "checkpoint": ("Checkpoint", "drain a model and write it to disk"),
    "park": ("Park", "drain a model and freeze it in memory"),
    "stop": ("Stop", "drain a model and end it, without a checkpoint"),
}


def main() -> int:
    """Entry point; exit status 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = _parser().parse_args()
    try:
        return asyncio.run(_run(arguments))
    except ConfigInvalid as error:
        print(f"llmuxctl: {error}", file=sys.stderr)
        return Exit.USAGE
    except LlmuxError as error:
        print(f"llmuxctl: {error}", file=sys.stderr)
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED


async def _run(arguments: argparse.Namespace) -> int:
    command: Command = arguments.run
    return await command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmuxctl", description=__doc__.partition(": ")[2])
    parser.add_argument("--version", action="version", version=f"llmuxctl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Command, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run, command=name)
        return command

    status = add("status", _status, "a line for each model")
    status.add_argument("--json", action="store_true", help="as JSON")
    for name, (_, text) in _JOBS.items():
        add(name, _job, text).add_argument("model")
    warmup = add("warmup", _warmup, "start each model once and keep a checkpoint of it")
    warmup.add_argument("model", nargs="*", help="only these (default: every model)")
    logs = add("logs", _logs, "the journal of a model's unit")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as lines come")
    logs.add_argument("model")
    check = add("check", _check, "whether this host has what llmuxd needs")
    check.add_argument("-c", "--config", type=Path, default=None)
    check.add_argument("--json", action="store_true", help="as JSON")
    return parser


async def _status(arguments: argparse.Namespace) -> int:
    async with Daemon() as daemon:
        listed = await daemon.manager("ListModels")
        models = [await daemon.properties(path, "org.llmux.Model") for _, _, path, _ in listed]
    if arguments.json:
        print(json.dumps(models, indent=2, ensure_ascii=False))
        return Exit.DONE
    print(
        table.render(
            ("MODEL", "STATE", "IN FLIGHT", "QUEUED", "IDLE", "CAME UP", "CHECKPOINT"),
            [_status_row(model) for model in models],
        )
    )
    return Exit.DONE


def _status_row(model: dict[str, object]) -> tuple[str, ...]:
    last_used, seconds = float(str(model["LastUsed"])), float(str(model["ActivationSeconds"]))
    busy = int(str(model["InFlight"])) > 0
    idle = "-" if busy or not last_used else table.age(time.time() - last_used)
    came_up = f"{model['ActivatedBy']} {seconds:.2f}s" if model["ActivatedBy"] else "-"
    size = table.size(int(str(model["CheckpointSize"]))) if model["CheckpointValid"] else "-"
    return (
        str(model["Name"]), str(model["State"]), str(model["InFlight"]), str(model["Queued"]),
        idle, came_up, size,
    )  # fmt: skip


async def _job(arguments: argparse.Namespace) -> int:
    async with Daemon() as daemon:
        return await _run_job(daemon, _JOBS[arguments.command][0], arguments.model)


async def _warmup(arguments: argparse.Namespace) -> int:
    worst = Exit.DONE
    async with Daemon() as daemon:
        models = arguments.model or [row[0] for row in await daemon.manager("ListModels")]
        for model in models:
            worst = max(worst, await _run_job(daemon, "Warmup", model))
    return worst


async def _run_job(daemon: Daemon, method: str, model: str) -> Exit:
    """Start a job, show its phases, end with its result; Ctrl-C cancels it."""
    begin = time.monotonic()
    path = await daemon.manager(method, model)

    def show(phase: str) -> None:
        print(f"{time.monotonic() - begin:7.1f}s  {model}: {phase}", file=sys.stderr, flush=True)

    waiting = asyncio.ensure_future(daemon.wait_for_job(path, show))
    loop = asyncio.get_running_loop()
    cancelled = asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, cancelled.set)
    interrupt = asyncio.ensure_future(cancelled.wait())
    await asyncio.wait((waiting, interrupt), return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():
        print("llmuxctl: cancelling the job", file=sys.stderr)
        with contextlib.suppress(LlmuxError):
            await daemon.cancel(path)
    result, phase = await waiting
    interrupt.cancel()
    loop.remove_signal_handler(signal.SIGINT)
    seconds = time.monotonic() - begin
    if result == "done":
        print(f"{model}: {method.lower()} done in {seconds:.2f} s")
        return Exit.DONE
    why = phase.removeprefix("failed: ") if phase.startswith("failed: ") else ""
    text = f"llmuxctl: {model}: {method.lower()} {result} after {seconds:.2f} s"
    print(f"{text}: {why}" if why else text, file=sys.stderr)
    return Exit.INTERRUPTED if result == "canceled" else Exit.FAILED


async def _logs(arguments: argparse.Namespace) -> int:
    model = arguments.model
    with contextlib.suppress(LlmuxError):
        model = config.load(config.current_path()).resolve(model)
    command = ["journalctl", "--unit", names.unit(model)]
    if arguments.follow:
        command.append("--follow")
    os.execvp(command[0], command)


async def _check(arguments: argparse.Namespace) -> int:
    from . import check

    results = await asyncio.to_thread(check.run, arguments.config or config.current_path())
    if arguments.json:
        print(json.dumps([vars(result) for result in results], indent=2, ensure_ascii=False))
    else:
        print("\n".join(check.line(result) for result in results))
    return Exit.FAILED if any(result.failed for result in results) else Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
