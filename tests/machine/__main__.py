# SPDX-License-Identifier: MIT
"""Builds, boots and enters throw-away machines; $LLMUX_MACHINE names the one that is meant."""

import argparse
import os
import signal
import subprocess
import sys

from . import cache, parts, process, root
from .errors import MachineError
from .machine import Machine


def main() -> int:
    arguments = _parser().parse_args()
    # Whoever is told to end ends as with a Ctrl-C, and cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return int(arguments.verb(Machine(os.environ.get("LLMUX_MACHINE", "default")), arguments))
    except MachineError as error:
        process.say(f"error: {error}")
        if error.hint:
            process.say(f"hint: {error.hint}")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.machine", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    build = verbs.add_parser("build", help="build into the cache what is missing there")
    build.add_argument("--only", nargs="*", metavar="NAME", help="just these images and models")
    build.set_defaults(verb=_build)
    boot = verbs.add_parser("boot", help="boot it, or install this checkout anew if it is up")
    boot.set_defaults(verb=_boot)
    run = verbs.add_parser("run", help="run a command in it; boots it if it is not up")
    run.add_argument("argv", nargs="+", metavar="CMD")
    run.set_defaults(verb=_run)
    shell = verbs.add_parser("shell", help="the same with a shell")
    shell.set_defaults(verb=_shell)
    poweroff = verbs.add_parser("poweroff", help="end it and remove all of it")
    poweroff.set_defaults(verb=_poweroff)
    forward = verbs.add_parser("forward", help="relay a port of this host to one of the machine")
    forward.add_argument("host_port", type=int, metavar="HOSTPORT")
    forward.add_argument("guest_port", type=int, metavar="GUESTPORT")
    forward.set_defaults(verb=_forward)
    status = verbs.add_parser("status", help="say what is built and what is up")
    status.set_defaults(verb=_status)
    return parser


def _build(_machine: Machine, arguments: argparse.Namespace) -> int:
    parts.build(_only() if arguments.only is None else arguments.only)
    return 0


def _only() -> list[str] | None:
    """The optional parts that $LLMUX_MACHINE_ONLY names, none if it is empty; None: all of them."""
    names = os.environ.get("LLMUX_MACHINE_ONLY")
    return None if names is None else names.split()


def _boot(machine: Machine, _arguments: argparse.Namespace) -> int:
    if not machine.is_up():
        parts.build(_only())
    machine.boot()
    return 0


def _run(machine: Machine, arguments: argparse.Namespace) -> int:
    if not machine.is_up():
        _boot(machine, arguments)
    with subprocess.Popen(machine.command(arguments.argv)) as running:
        # The command gets a Ctrl-C of the terminal itself; it dies if its nsenter is killed.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: running.kill())
        status = running.wait()
    return status if status >= 0 else 128 - status


def _shell(machine: Machine, arguments: argparse.Namespace) -> int:
    # The terminal is of the host's: script(1) gives the shell one of the machine's own.
    terminal = ["script", "--quiet", "--return", "--command", "bash -l", "/dev/null"]
    arguments.argv = terminal if sys.stdin.isatty() else ["bash", "-l"]
    return _run(machine, arguments)


def _poweroff(machine: Machine, _arguments: argparse.Namespace) -> int:
    machine.poweroff()
    return 0


def _forward(machine: Machine, arguments: argparse.Namespace) -> int:
    with machine.forward(arguments.host_port, arguments.guest_port) as relay:
        return relay.wait()


def _status(machine: Machine, _arguments: argparse.Namespace) -> int:
    # A reader that has read enough ends it, as it ends any program; nothing is to be cleaned up.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(f"machine {machine.name}: {f'up, PID {machine.leader}' if machine.is_up() else 'down'}")
    print(f"cache {cache.directory()}")
    for name, entry in {"root": root.entry(), **parts.optional()}.items():
        print(f"{name}: {'built' if entry.is_built else 'to be built'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
