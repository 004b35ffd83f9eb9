# SPDX-License-Identifier: MIT
"""llmuxctl status and show: what the models are doing."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from . import table, terminal, tuned
from .daemon import Daemon
from .exits import Exit

HEADER = ("MODEL", "STATE", "WHERE", "IN FLIGHT", "QUEUED", "IDLE", "LAST SWITCH", "SIZE")
_STATE = HEADER.index("STATE")
_ON_GPU = ("starting", "serving", "draining")

Properties = dict[str, Any]


async def status(arguments: argparse.Namespace) -> int:
    """A line for each model."""
    async with Daemon(arguments.host) as daemon:
        models = (await daemon.objects()).models()
    if arguments.json:
        print_json(models)
    else:
        print("\n".join(lines(models, colour=terminal.has_colour(sys.stdout))))
    return Exit.DONE


async def show(arguments: argparse.Namespace) -> int:
    """All that is known of one model."""
    async with Daemon(arguments.host) as daemon:
        model = await daemon.model(arguments.model)
    if arguments.json:
        print_json(model)
        return Exit.DONE
    shown = [(label, text) for label, text in _details(model) if text]
    width = max(len(label) for label, _ in shown)
    print("\n".join(f"{label:>{width}}: {text}" for label, text in shown))
    return Exit.DONE


def lines(models: Sequence[Properties], *, colour: bool, room: int = sys.maxsize) -> list[str]:
    """The table of the models; `room`: how many characters of a line are shown."""

    def paint(column: int, cell: str) -> str:
        return terminal.paint(cell, terminal.state_style(cell)) if column == _STATE else cell

    rows = [_row(model) for model in models]
    if not colour:
        return table.lines(HEADER, rows, room=room)
    return table.lines(HEADER, rows, paint=paint, room=room)


def print_json(document: object) -> None:
    """How --json prints: indented, in the order of the document, not only ASCII."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _row(model: Properties) -> tuple[str, ...]:
    return (
        model["Name"], model["State"], _where(model), str(model["InFlight"]), str(model["Queued"]),
        _idle(model), _came_up(model),
        table.size(model["CheckpointSize"]) if model["CheckpointValid"] else "-",
    )  # fmt: skip


def _where(model: Properties) -> str:
    match model["State"]:
        case "parked":
            return "memory"
        case "checkpointed":
            return "disk"
        case state if state in _ON_GPU:
            gpus = ",".join(map(str, model["GPUs"]))
            pinned = ", pinned" if model["Pinned"] else ""
            return (f"GPU {gpus}" if gpus else "CPU") + pinned
        case _:
            return "-"


def _idle(model: Properties) -> str:
    if not model["IdleSince"]:
        return "-"
    return table.age(max(time.time() - model["IdleSince"], 0.0))


def _came_up(model: Properties) -> str:
    if not model["LastActivation"]:
        return "-"
    return f"{model['LastActivation']} {model['LastActivationSeconds']:.2f}s"


def _details(model: Properties) -> list[tuple[str, str]]:
    """What `show` prints, with a label each; what has no text is left out."""
    return [
        ("Name", model["Name"]),
        ("Aliases", ", ".join(model["Aliases"])),
        ("State", f"{model['State']}, {_where(model)}" if _where(model) != "-" else model["State"]),
        ("Tier", model["Tier"]),
        ("Pinned", "yes" if model["Pinned"] else ""),
        ("Unit", model["Unit"]),
        ("Endpoint", model["Endpoint"]),
        ("Requests", f"{model['InFlight']} in flight, {model['Queued']} queued"),
        ("Last used", table.moment(model["LastUsed"])),
        ("Came up by", f"{_came_up(model)}" if model["LastActivation"] else ""),
        ("Checkpoint", _checkpoint(model)),
        ("Lets go", tuned.letting_go(model)),
        ("Tuned", tuned.when(model)),
        ("Takes", ", ".join(f"{cost} {s:.2f} s" for cost, s in model["Costs"].items())),
        ("Ended by itself", f"{model['Restarts']} times" if model["Restarts"] else ""),
        ("Failures", str(model["Failures"] or "")),
        ("Last error", model["LastError"]),
    ]


def _checkpoint(model: Properties) -> str:
    if not model["CheckpointValid"]:
        return f"none ({model['CheckpointWhyNot']})"
    return (
        f"{table.size(model['CheckpointSize'])}, taken {table.moment(model['CheckpointTaken'])}"
        f" in {model['CheckpointSeconds']:.2f} s"
    )
