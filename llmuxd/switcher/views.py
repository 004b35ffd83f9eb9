# SPDX-License-Identifier: MIT
"""A model as policy sees it."""

from math import inf

from ..config import Tier
from ..costs import Cost, Costs
from ..llmux_yaml import MAX_PRIORITY
from ..policy import ModelView, Need, Stage
from ..state import State
from .costbook import CostBook
from .fleet import Fleet
from .models import PRESSING, Model

# After everybody else, and never instead of one that is at work.
LAST = -MAX_PRIORITY - 1
_SLOWEST_LAST = (Cost.RESUME, Cost.RESTORE, Cost.COLD)
_WAYS = {State.PARKED: Cost.RESUME, State.CHECKPOINTED: Cost.RESTORE}


def view(fleet: Fleet, book: CostBook, model: Model) -> ModelView:
    """What is configured, what is seen, and what moving it takes."""
    stage = fleet.stage(model)
    config = model.config
    first = next((waiter for waiter in model.waiters if waiter.wish in PRESSING), None)
    preload = first is None and bool(model.waiters)
    since = first.arrived if first else model.waiters[0].arrived if model.waiters else None
    parks = config.tier is Tier.PARK
    requests = model.in_flight + len(model.waiters)
    costs = book.costs
    return ModelView(
        name=model.name,
        # Where it is was decided when it came up; a reload changes the next time only.
        gpus=frozenset(fleet.place(model)),
        stage=stage,
        waiting_since=since,
        may_start_at=model.may_start_at,
        may_leave_at=inf if model.kept else model.may_leave_at,
        vram=config.vram,
        need=_need(fleet, book, model, stage),
        pin=model.pin,
        meek=model.meek,
        priority=LAST if preload else _priority(model),
        busy=model.in_flight > 0,
        in_since=model.in_since,
        idle_since=model.idle_since,
        come_cost=_come_cost(costs, model.name, _way_in(fleet, model, stage)),
        leave_cost=costs.reckon(model.name, Cost.PARK if parks else Cost.OUT),
        drain_cost=requests * costs.reckon(model.name, Cost.DRAIN),
        gap=costs.known(model.name, Cost.GAP),
        max_wait=inf if preload else config.max_wait,
        min_active=config.min_active,
        ttl=config.ttl,
    )


def _need(fleet: Fleet, book: CostBook, model: Model, stage: Stage) -> Need | None:
    """Not of one that would start cold, nor of one that failed: perhaps for want of room."""
    devices, host = model.config.device_names, 0
    if stage is not Stage.OUT or fleet.state(model) is State.PARKED:
        devices = model.activation.devices if model.activation else devices
    elif model.checkpoint is not None and fleet.state(model) is State.CHECKPOINTED:
        host = model.checkpoint.size
    else:
        return None
    vram = book.needs.known(model.name) if devices else 0
    return None if vram is None or model.failures else Need(vram, host)


def _priority(model: Model) -> int:
    return max(-MAX_PRIORITY, min(model.config.priority + model.urgency, MAX_PRIORITY))


def _come_cost(costs: Costs, name: str, way: Cost) -> float:
    """As long as nobody came back that way, it is reckoned no cheaper than the next slower one."""
    slower = _SLOWEST_LAST[_SLOWEST_LAST.index(way) :]
    return next((cost for each in slower if (cost := costs.reckon(name, each))), 0.0)


def _way_in(fleet: Fleet, model: Model, stage: Stage) -> Cost:
    """How it comes in the next time: from where it is, or from where it would go."""
    if stage is Stage.OUT:
        return _WAYS.get(fleet.state(model), Cost.COLD)
    if model.config.tier is Tier.PARK:
        return Cost.RESUME
    return Cost.RESTORE if model.config.checkpoint else Cost.COLD
