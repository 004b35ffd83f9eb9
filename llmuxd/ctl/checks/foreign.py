# SPDX-License-Identifier: MIT
"""The host's own units that serve models (`engine: unit`)."""

import re

from ...config import ModelConfig, Tier
from .look import Look
from .result import Result, fail, ok, skip, warn

_KEYS = ("LoadState", "Type", "UnitFileState", "FreezerState", "NeedDaemonReload")


def units(look: Look) -> list[Result]:
    """Each can be started, watched, parked as configured, and is left to llmuxd."""
    models = [model for model in look.models if model.unit]
    if not models:
        return [skip("unit", "no model is served by a unit of the host's own")]
    return [_unit(look, model) for model in models]


def _unit(look: Look, model: ModelConfig) -> Result:
    name = model.unit
    done = look.host.run(["systemctl", "show", f"--property={','.join(_KEYS)}", "--", name])
    if done.status != 0:
        return fail("unit", f"systemctl does not tell of {name}: {done.reason}", "systemctl status")
    told = dict(line.partition("=")[::2] for line in done.out.splitlines())
    problem = _cannot_run(model, told) or _watched(look, model) or _doubtful(model, told)
    return problem or ok("unit", f"{name}, Type={told.get('Type', '')}")


def _cannot_run(model: ModelConfig, told: dict[str, str]) -> Result | None:
    name, state = model.unit, told.get("LoadState", "")
    if state == "not-found":
        return fail("unit", f"{name}, which serves {model.name}, does not exist", "install it")
    if state == "masked":
        return fail("unit", f"{name} is masked", f"systemctl unmask {name}")
    if state != "loaded":
        return fail("unit", f"{name} cannot be loaded: {state}", f"systemctl status {name}")
    if told.get("Type") == "oneshot":
        return fail(
            "unit",
            f"{name} is of Type=oneshot, and has no main process that could be watched",
            "make it one whose main process is the server (Type=exec)",
        )
    if told.get("FreezerState", "running") != "running":
        return fail("unit", f"{name} is frozen, and cannot be started", f"systemctl thaw {name}")
    return None


def _watched(look: Look, model: ModelConfig) -> Result | None:
    if model.tier is not Tier.PARK:
        return None
    # Its property WatchdogUSec= says nothing before it runs.
    text = look.host.run(["systemctl", "cat", "--", model.unit]).out
    set_to = re.findall(r"^WatchdogSec *= *(\S*)", text, re.MULTILINE)
    if not set_to or set_to[-1] in ("", "0", "infinity"):
        return None
    return fail(
        "unit",
        f"{model.unit} has WatchdogSec=, by which systemd would kill it while it is parked",
        f"set 'tier: checkpoint' for {model.name}, or WatchdogSec=0 (systemctl edit {model.unit})",
    )


def _doubtful(model: ModelConfig, told: dict[str, str]) -> Result | None:
    name = model.unit
    if told.get("UnitFileState", "").startswith("enabled"):
        return warn(
            "unit",
            f"{name} is enabled, and starts beside whatever has its GPU by then",
            f"systemctl disable {name}",
        )
    if told.get("NeedDaemonReload") == "yes":
        return warn("unit", f"{name} changed on disk", "systemctl daemon-reload")
    return None
