# SPDX-License-Identifier: MIT
"""The six models of the soak, on two GPUs that are not there."""

import json
from pathlib import Path
from typing import Any

from ..ring.guest import CONFIG, FAKE, eventually, sh

REQUEST_TIMEOUT = 25.0
_DEFAULTS: dict[str, Any] = {
    "image": FAKE, "engine": "generic", "devices": [], "max_wait": 8,
    "request_timeout": REQUEST_TIMEOUT, "drain_timeout": 5, "start_timeout": 20,
    "restore_timeout": 8,
}  # fmt: skip
_KINDS: dict[str, dict[str, Any]] = {
    "one/pristine": {"gpus": [0]},
    "one/live": {"gpus": [0], "snapshot": "live"},
    "one/parked": {"gpus": [0], "tier": "park"},
    "two/live": {"gpus": [1], "snapshot": "live", "args": ["--memory-mb", "32"]},
    "two/parked": {"gpus": [1], "tier": "park"},
    "two/never": {"gpus": [1], "checkpoint": False},
}
NAMES = list(_KINDS)
LIVE = [name for name, kind in _KINDS.items() if kind.get("snapshot") == "live"]


def write(without: str = "") -> None:
    """llmux.yaml with all of them, or all but one."""
    models = {
        name: kind | {"args": ["--model", name, *kind.get("args", [])]}
        for name, kind in _KINDS.items()
        if name != without
    }
    CONFIG.write_text(json.dumps({"defaults": _DEFAULTS, "models": models}), encoding="utf-8")


def states() -> dict[str, str]:
    """By llmuxd's own word; nothing where it is not there to say it."""
    told = sh(
        "busctl", "--json=short", "call", "org.llmux", "/Manager", "org.llmux.Manager",
        "ListModels", check=False,
    )  # fmt: skip
    return {name: state for name, state, *_ in json.loads(told)["data"][0]} if told else {}


def crowds() -> list[str]:
    """Who stays on one GPU together, though there is room for one; once nobody is on the way."""

    def at_rest() -> bool:
        found = set(states().values())
        noted = Path("/run/llmux/succession.json").exists()
        return bool(found) and not {"starting", "draining"} & found and not noted

    eventually(at_rest, "nobody is on the way", 60)
    here: dict[int, list[str]] = {}
    for name in [name for name, state in states().items() if state == "serving"]:
        here.setdefault(_KINDS[name]["gpus"][0], []).append(name)
    return [" and ".join(names) for names in here.values() if len(names) > 1]


def reload() -> None:
    """Have llmuxd take the file."""
    sh("systemctl", "reload", "llmuxd.service")
