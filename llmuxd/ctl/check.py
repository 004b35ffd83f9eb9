# SPDX-License-Identifier: MIT
"""Whether this host has what llmuxd needs: a line for each thing, and what to do about it."""

from collections.abc import Callable
from pathlib import Path

from .checks import (
    basics,
    criu,
    disk,
    firewall,
    foreign,
    gpu,
    models,
    network,
    python,
    selinux,
    service,
    state,
    vram,
)
from .checks.host import Host
from .checks.look import Look
from .checks.result import Result, Status, fail

__all__ = ["CHECKS", "Result", "Status", "line", "run", "to_json"]

_NAME_WIDTH = 15

Check = Callable[[Look], Result | list[Result]]

CHECKS: tuple[Check, ...] = (
    basics.systemd,
    basics.cgroups,
    basics.podman,
    python.python,
    basics.configuration,
    criu.criu_check,
    criu.criu_kernel,
    criu.runtime,
    criu.options,
    criu.network_lock,
    selinux.selinux,
    network.network,
    firewall.firewall,
    gpu.driver,
    gpu.libcuda,
    gpu.gpus,
    vram.vram,
    gpu.io_uring,
    gpu.cuda_checkpoint,
    gpu.cuda_plugin,
    gpu.devices,
    models.images,
    disk.disk,
    foreign.units,
    state.state,
    service.units,
    service.port,
    service.bus,
)


def run(config_path: Path, host: Host | None = None) -> list[Result]:
    """Go through all of it; the order is the one in which to mend things."""
    look = Look(host or Host(), config_path)
    results = [basics.root(look)]
    if results[0].failed:
        # For anybody else podman is another podman, and CRIU fails: that would only mislead.
        return results
    for check in CHECKS:
        results += _run(check, look)
    return results


def line(result: Result) -> str:
    """One result as a line of text."""
    said = f"{result.text}: {result.hint}" if result.hint else result.text
    return f"{result.status:<4}  {result.name:<{_NAME_WIDTH}}  {' '.join(said.split())}"


def to_json(result: Result) -> dict[str, object]:
    """One result for JSON; what --fix would change is told in words."""
    return vars(result) | {"changes": [str(change) for change in result.changes]}


def _run(check: Check, look: Look) -> list[Result]:
    try:
        found = check(look)
    except Exception as error:
        # One surprise must not hide the other lines.
        name = check.__name__.replace("_", " ")
        return [fail(name, f"could not be checked: {error!r}", "report this as a bug of llmuxctl")]
    return found if isinstance(found, list) else [found]
