# SPDX-License-Identifier: MIT
"""The words of llmuxctl's command line, and which function each verb is.

Functions are named, not imported: a verb loads what it needs and nothing else.
"""

import argparse
from pathlib import Path

from .. import __version__

# Looks at files of the host that it runs on, so -H would mean nothing.
LOCAL = ("check", "config")


def parser() -> argparse.ArgumentParser:
    """The whole command line. `run` of what it parses is a function, as `module:name`."""
    top = argparse.ArgumentParser(
        prog="llmuxctl", description="See and steer the models of this host."
    )
    top.add_argument("--version", action="version", version=f"llmuxctl {__version__}")
    _common(top, host=None, json=False)
    verbs = top.add_subparsers(metavar="COMMAND", required=True, dest="command")
    _verb(verbs, "status", "models:status", "a line for each model")
    _verb(verbs, "top", "top:top", "models and jobs, live")
    show = _verb(verbs, "show", "models:show", "all that is known of a model")
    show.add_argument("model")
    for name, text in (
        ("switch", "make a model serve"),
        ("preload", "make a model serve once nobody else wants its place"),
        ("checkpoint", "drain a model and write it to disk"),
        ("park", "drain a model and freeze it in memory"),
        ("stop", "drain a model and end it, without a checkpoint"),
    ):
        _verb(verbs, name, "work:run", text).add_argument("model")
    warmup = _verb(verbs, "warmup", "work:run", "start each model once and keep a checkpoint of it")
    warmup.add_argument("model", nargs="*", help="only these (default: every model)")
    warmup.add_argument(
        "--tune", action="store_true",
        help="measure first what it best lets go of before it leaves its GPU, and go by that",
    )  # fmt: skip
    for name, text in (
        ("pin", "keep a model from leaving for another one"),
        ("unpin", "let a model leave for another one"),
    ):
        _verb(verbs, name, "plain:pin", text).add_argument("model")
    _verb(verbs, "jobs", "jobs:show", "a line for each job that runs")
    cancel = _verb(verbs, "cancel", "jobs:cancel", "have jobs give up")
    cancel.add_argument("job", type=int, nargs="+", help="its number, as 'jobs' shows it")
    logs = _verb(verbs, "logs", "logs:logs", "the journal of a model's unit")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as lines come")
    logs.add_argument("model")
    _verb(verbs, "reload", "plain:reload", "have llmuxd read its configuration again")
    check = _verb(verbs, "check", "plain:check", "whether this host has what llmuxd needs")
    _file(check)
    check.add_argument(
        "--fix", action="store_true", help="do what is safe to do, each change shown first"
    )
    check.add_argument("-y", "--yes", action="store_true", help="with --fix: do not ask")
    _config(_verb(verbs, "config", "", "the configuration: what is wrong, what is in force"))
    _verb(verbs, "version", "plain:version", "of llmuxctl, and of the llmuxd that runs")
    return top


def _config(command: argparse.ArgumentParser) -> None:
    verbs = command.add_subparsers(metavar="COMMAND", required=True)
    _file(_verb(verbs, "check", "configuration:check", "read the file and say what is wrong"))
    _file(_verb(verbs, "show", "configuration:show", "each model with its defaults filled in"))


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: str, text: str
) -> argparse.ArgumentParser:
    command = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    if run:
        command.set_defaults(run=run)
    # Here as well as before the verb; a default here would overwrite what stood there.
    _common(command, host=argparse.SUPPRESS, json=argparse.SUPPRESS)
    return command


def _common(command: argparse.ArgumentParser, *, host: str | None, json: object) -> None:
    command.add_argument(
        "-H",
        "--host",
        metavar="[USER@]HOST[:PORT]",
        default=host,
        help="another host's llmuxd, over ssh",
    )
    command.add_argument("--json", action="store_true", default=json, help="print JSON")


def _file(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="this file, not the one that is in force"
    )
