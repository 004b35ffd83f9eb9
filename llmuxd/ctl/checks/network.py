# SPDX-License-Identifier: MIT
"""Whether the containers' networks can be closed as far as llmux.yaml says."""

from collections import Counter

from ...config import Reach
from ...model.network import RULES, Network
from .look import Look
from .result import Result, fail, ok, skip

_HINT = "{}, or set 'network: open' for these models"


def network(look: Look) -> Result:
    """The kernel takes the rules by which a container reaches no more than it may."""
    closed = [
        model.network
        for model in look.models
        if model.network is not Reach.OPEN and Network(model).is_ours
    ]
    if not closed:
        return skip("network", "no model is configured whose network llmuxd closes")
    if look.host.which("nft") is None:
        return fail("network", "no nft to close it with", _HINT.format("install nftables"))
    done = look.host.run(["nft", "--check", "--file", str(RULES)])
    if done.status != 0:
        hint = _HINT.format(f"make 'nft --check --file {RULES}' work")
        return fail("network", f"nftables does not take llmuxd's rules: {done.reason}", hint)
    many = ", ".join(f"{count} {reach}" for reach, count in sorted(Counter(closed).items()))
    return ok("network", f"closed by nftables: {many}")
