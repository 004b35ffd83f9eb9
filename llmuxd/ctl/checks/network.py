# SPDX-License-Identifier: MIT
"""Whether the containers' networks can be closed as far as llmux.yaml says, and are."""

from collections import Counter

from ...config import Reach
from ...model.network import RULES, TABLE, Network
from .change import Run
from .look import Look
from .result import Result, fail, ok, skip

_HINT = "{}, or set 'network: open' for these models"
_BRIDGES = "/sys/class/net/llmux[pi]-*"


def network(look: Look) -> Result:
    """The kernel takes the rules by which a container reaches no more than it may, and has them."""
    closed = [
        model.network
        for model in look.models
        if not model.unit and model.network is not Reach.OPEN and Network(model).is_ours
    ]
    if not closed:
        return skip("network", "no model is configured whose network llmuxd closes")
    if look.host.which("nft") is None:
        return fail("network", "no nft to close it with", _HINT.format("install nftables"))
    load = ("nft", "--file", str(RULES))
    done = look.host.run(["nft", "--check", *load[1:]])
    if done.status != 0:
        hint = _HINT.format(f"make 'nft --check --file {RULES}' work")
        return fail("network", f"nftables does not take llmuxd's rules: {done.reason}", hint)
    up = len(look.host.glob(_BRIDGES))
    loaded = look.host.run(["nft", "list", "table", *TABLE]).status == 0
    if up and not loaded:
        return fail(
            "network",
            f"the table {' '.join(TABLE)} is gone, and nothing closes {up} that "
            f"{'are' if up > 1 else 'is'} up",
            f"{' '.join(load)}; 'podman network reload --all' where podman's ports are gone too",
            Run(load),
        )
    many = ", ".join(f"{count} {reach}" for reach, count in sorted(Counter(closed).items()))
    later = "" if loaded else ", whose table the first start loads"
    return ok("network", f"closed by nftables: {many}{later}")
