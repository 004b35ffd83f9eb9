# SPDX-License-Identifier: MIT
"""What models with `vram` need: GPUs that are large enough, and somebody who measures them."""

from ..table import size
from .look import Look
from .result import Result, fail, ok, skip, warn

METER = ("llmux-gpus.socket", "llmux-gpus.service")
DAEMON = "llmuxd.service"
_QUERY = ["nvidia-smi", "--query-gpu=index,memory.total,memory.reserved"]
_MIB = 1 << 20


def vram(look: Look) -> Result:
    """Each model would fit on its GPUs if it had them alone, and their memory is measured."""
    sized = [(model, model.vram) for model in look.models if model.vram is not None]
    if not look.driver:
        return skip("vram", "no NVIDIA GPU in this host" if not look.has_gpu else "no driver")
    totals = _totals(look)
    for model, wanted in sized:
        for number in model.gpus:
            total = totals.get(number, wanted)
            if wanted > total:
                return fail(
                    "vram",
                    f"{model.name} wants {size(wanted)} of GPU {number}, which has {size(total)}",
                    f"lower its 'vram:' in {look.config_path}",
                )
    if look.unit_property("ActiveState", DAEMON) != "active":
        return ok("vram", _sum(totals))
    socket, service = METER
    # Only these depend on it; the others are seen without.
    lacking = fail if sized else warn
    if look.unit_property("ActiveState", socket) != "active":
        text = f"GPU memory is not measured: {socket} is not active"
        return lacking("vram", text, f"systemctl restart {DAEMON}")
    told = look.unit_property("StatusText", service)
    if not told.startswith("GPU "):
        return lacking("vram", told or f"{service} says nothing", f"systemctl status {service}")
    return ok("vram", told)


def _totals(look: Look) -> dict[int, int]:
    """What processes can have of each GPU, in bytes; empty where it cannot be asked for."""
    done = look.host.run([*_QUERY, "--format=csv,noheader,nounits"])
    rows = [[cell.strip() for cell in line.split(",")] for line in done.out.splitlines()]
    return {
        int(row[0]): (int(row[1]) - int(row[2])) * _MIB
        for row in rows
        if done.status == 0 and len(row) == 3 and all(cell.isdigit() for cell in row)
    }


def _sum(totals: dict[int, int]) -> str:
    gpus = [f"GPU {number}: {size(total)}" for number, total in totals.items()]
    return ", ".join(gpus) or "measured when llmuxd runs"
