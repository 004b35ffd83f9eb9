# SPDX-License-Identifier: MIT
"""How long whoever asks waits by the policy's choice: it may keep an idle model for a while.

By the policy's own rule, from what llmuxd has learnt: not from what the wait then was.
"""

import json
from pathlib import Path

from llmuxd.config import Tier
from llmuxd.costs import Cost, Costs
from llmuxd.names import object_path
from llmuxd.policy import ModelView, Stage
from llmuxd.policy.tenure import keeps_until
from tests.machine.ring.guest import sh

from .measure import MODELS

_LEARNT = Path("/var/lib/llmux/costs.json")
_WAYS = {Tier.PARK: (Cost.RESUME, Cost.PARK), Tier.CHECKPOINT: (Cost.RESTORE, Cost.OUT)}


def kept_until(newcomer: str, tier: Tier) -> float:
    """The Unix time until which the other model, if it serves, stays though `newcomer` is wanted.

    0.0 where none serves.
    """
    told = json.loads(_LEARNT.read_text()) if _LEARNT.exists() else {}
    costs = Costs.from_json(told.get("models", {}))
    waiter = _view(newcomer, costs, tier)
    seen = {name: _seen(name) for name in MODELS if name != newcomer}
    kept = [
        keeps_until(_view(name, costs, tier, since, gap), waiter)
        for name, (state, since, gap) in seen.items()
        if state == "serving"
    ]
    return max(kept, default=0.0)


def _view(
    name: str, costs: Costs, tier: Tier, since: float = 0.0, gap: float | None = None
) -> ModelView:
    """As llmuxd's own, of a model that came for one request and is idle since then."""
    back, out = _WAYS[tier]
    return ModelView(
        name, frozenset({0}), Stage.IN, in_since=since, idle_since=since,
        come_cost=costs.reckon(name, back), leave_cost=costs.reckon(name, out),
        gap=gap,
    )  # fmt: skip


def _seen(name: str) -> tuple[str, float, float | None]:
    """Its state, since when it is idle, and its usual gap, of which the file has not yet the last.

    In one question, as somebody is about to ask.
    """
    names = ("State", "IdleSince", "Costs")
    # As JSON: of a double it shows six digits otherwise, and a Unix time has ten before the point.
    argv = ("busctl", "--json=short", "get-property", "org.llmux", object_path(name))
    lines = sh(*argv, "org.llmux.Model", *names).splitlines()
    state, since, costs = (json.loads(line)["data"] for line in lines)
    return str(state), float(since), costs.get(Cost.GAP)
