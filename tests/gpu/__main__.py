# SPDX-License-Identifier: MIT
"""python3 -m tests.gpu: the machine on a GPU host, with that host's PyTorch, and the plan in it.

Where the host has a network, `run` does all of it. Where it has none, `pack` makes the parts on
another, and `run --parts DIR` goes on from them. The Python that runs this on the GPU host is the
one whose PyTorch the models' containers get.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from tests.machine import cache, host, parts, process
from tests.machine.errors import MachineError

from . import boot, pack, report, up


def main() -> int:
    """Entry point; the exit status of `run` says whether each goal was met."""
    arguments = _parser().parse_args()
    try:
        host.require_root()
        return int(arguments.verb(arguments))
    except MachineError as error:
        process.say(f"error: {error}")
        if error.hint:
            process.say(f"hint: {error.hint}")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.gpu", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    packing = verbs.add_parser("pack", help="make the parts, and copy them to a directory")
    packing.add_argument("directory", type=Path)
    packing.set_defaults(verb=_pack)
    upping = verbs.add_parser("up", help="boot the machine, with llmuxd installed and both models")
    upping.set_defaults(verb=_up)
    run = verbs.add_parser("run", help="the same, then the plan, and what came out of it")
    run.add_argument("--seconds", type=float, default=3600.0, help="for the plan, default 3600")
    run.add_argument("--only", nargs="*", default=[], metavar="STEP", help="just these steps")
    run.set_defaults(verb=_run)
    preparing = verbs.add_parser("prepare", help="what `up` does first, while a part is on its way")
    preparing.set_defaults(verb=_prepare)
    for verb in (upping, run, preparing):
        verb.add_argument("--parts", type=Path, nargs="*", metavar="DIR", help="where they lie")
    install = verbs.add_parser("install", help="this checkout in the machine that is up")
    install.set_defaults(verb=_install)
    enter = verbs.add_parser("enter", help="run a command in the machine")
    enter.add_argument("argv", nargs=argparse.REMAINDER, metavar="CMD")
    enter.set_defaults(verb=_enter)
    poweroff = verbs.add_parser("poweroff", help="end it; what it wrote stays")
    poweroff.set_defaults(verb=_poweroff)
    remove = verbs.add_parser("remove", help="end it and remove all of it, its results too")
    remove.set_defaults(verb=_remove)
    reporting = verbs.add_parser("report", help="the tables and goals of a file of results")
    reporting.add_argument("results", type=Path)
    reporting.set_defaults(verb=lambda arguments: report.main(arguments.results))
    return parser


def _pack(arguments: argparse.Namespace) -> int:
    host.install_tools()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    for part in pack.build():
        shutil.copy(part, arguments.directory)
        print(arguments.directory / part.name)
    return 0


def _up(arguments: argparse.Namespace) -> int:
    _booted(arguments)
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    up.prepare(arguments.parts or [])
    return 0


def _booted(arguments: argparse.Namespace) -> boot.Booted:
    if arguments.parts is None:
        parts.build([])
        return up.up([part.parent for part in pack.build()])
    return up.up(arguments.parts)


def _run(arguments: argparse.Namespace) -> int:
    booted = _booted(arguments)
    command = [
        *("sh", "-c", f'cd /{up.CHECKOUT} && exec python3 -B -m tests.gpu.inside "$@"', "inside"),
        *("--seconds", str(arguments.seconds)),
    ]
    if arguments.only:
        command += ["--only", *arguments.only]
    status = subprocess.run(booted.command(command), stdin=subprocess.DEVNULL, check=False)
    return status.returncode or report.main(up.STATE / "results/results.json")


def _install(_arguments: argparse.Namespace) -> int:
    up.install(_running())
    return 0


def _enter(arguments: argparse.Namespace) -> int:
    return subprocess.run(_running().command(arguments.argv), check=False).returncode


def _running() -> boot.Booted:
    booted = boot.running()
    if booted is None:
        raise MachineError("the machine is not up", "python3 -m tests.gpu up")
    return booted


def _poweroff(_arguments: argparse.Namespace) -> int:
    booted = boot.running()
    if booted is not None:
        booted.poweroff()
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    _poweroff(arguments)
    for place in (up.STATE, up.MODELS, boot.RUN):
        if place.exists():
            cache.remove(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
