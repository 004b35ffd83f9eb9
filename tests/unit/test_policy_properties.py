# SPDX-License-Identifier: MIT
"""The policy plays whole traces on a simulated clock; each rule is an assertion at each step."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from llmuxd.policy import Board, Decision, Gpu, ModelView, Stage, decide
from llmuxd.policy.tenure import expires_at
from tests.bench.arrivals import Arrival, Switch, Trace
from tests.bench.world import SimModel, World

ROOM = 10  # of a GPU, in whatever unit
STEPS = 100_000


@dataclass
class Watched:
    """Our policy with costs that are known, and an eye on what it says."""

    trace: Trace
    wishes: dict[str, ModelView]
    owing: set[str] = field(default_factory=set)
    drains: int = 0
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._board = Board(self.trace.gpus)
        self._dirty: dict[str, SimModel] = {}
        self._steps = 0

    def admits(self, world: World, model: SimModel) -> bool:
        self.owing.discard(model.name)
        return True

    def decide(self, world: World) -> Decision:
        self._steps += 1
        assert self._steps < STEPS, "no end in sight"
        for model in self._dirty.values():
            self._board.put(self._view(model))
        self._dirty.clear()
        found = self._board.decide(world.now)
        views = [self._view(model) for model in world.models.values()]
        assert _same(found, decide(views, world.now, self.trace.gpus))
        self._check_room(world, found)
        self._check_drains({view.name: view for view in views}, found, world.now)
        for name in found.activate:
            self.owing.add(name)
        for verdict in found.refuse:
            self._refuse(world, world.models[verdict.model])
        return found

    def _check_room(self, world: World, found: Decision) -> None:
        there = {model.name for model in world.holders()} | set(found.activate)
        for number in self.trace.used:
            sizes = [self.wishes[name].vram for name in there if number in world.models[name].gpus]
            whole = sizes.count(None)
            assert not whole or len(sizes) == 1
            gpu = self.trace.gpus[number]
            assert whole or sum(size or 0 for size in sizes) <= gpu.total - gpu.foreign

    def _check_drains(self, views: dict[str, ModelView], found: Decision, now: float) -> None:
        for name in found.drain:
            self.drains += 1
            mine = views[name]
            assert mine.stage is Stage.IN
            assert not mine.pin
            assert name not in self.owing, "it was woken for a request and has not served it"
            wanted = any(
                other.stage is Stage.OUT
                and other.waiting_since is not None
                and other.gpus & mine.gpus
                for other in views.values()
            )
            assert wanted or expires_at(mine) <= now, "it drains for nobody"
        for name in found.activate:
            assert views[name].waiting_since is not None, "it comes for nobody"

    def _refuse(self, world: World, model: SimModel) -> None:
        """The verdict is right: it fits on no GPU beside those that never leave."""
        assert any(
            self._pinned_on(world, number, model.name)
            + self._wish(number, model.name)
            + self.trace.gpus[number].foreign
            > self.trace.gpus[number].total
            for number in model.gpus
        )
        self.refused += [model.name] * len(model.waiting)
        for arrival in model.waiting:
            world.line.remove(arrival)
        model.waiting.clear()
        self.changed(model)

    def _pinned_on(self, world: World, number: int, but: str) -> int:
        return sum(
            self._wish(number, model.name)
            for model in world.holders()
            if number in model.gpus and self.wishes[model.name].pin and model.name != but
        )

    def _wish(self, number: int, name: str) -> int:
        return self.wishes[name].vram or self.trace.gpus[number].total

    def came(self, model: SimModel, seconds: float) -> None:
        pass

    def drained(self, model: SimModel, requests: int, seconds: float) -> None:
        pass

    def left(self, model: SimModel, seconds: float) -> None:
        pass

    def asked(self, model: SimModel, now: float) -> None:
        pass

    def changed(self, model: SimModel) -> None:
        self._dirty[model.name] = model

    def _view(self, model: SimModel) -> ModelView:
        return replace(
            self.wishes[model.name],
            stage=model.stage,
            waiting_since=model.waiting[0].at if model.waiting else None,
            busy=bool(model.ends),
            in_since=model.in_since,
            idle_since=model.idle_since,
        )


def _same(one: Decision, other: Decision) -> bool:
    return one == replace(other, refuse=one.refuse) and set(one.refuse) == set(other.refuse)


_gpus = st.frozensets(st.integers(0, 2), min_size=1, max_size=2)
_seconds = st.integers(0, 40).map(float)
_names = "abcdef"


@st.composite
def _traces(draw: st.DrawFn) -> tuple[Trace, dict[str, ModelView]]:
    switch = Switch("drawn", draw(st.integers(0, 20)) / 1, draw(st.integers(1, 20)) / 1)
    wishes = {
        name: ModelView(
            name,
            draw(_gpus),
            Stage.OUT,
            vram=draw(st.none() | st.integers(1, ROOM + 1)),
            pin=draw(st.sampled_from((False, False, False, True))),
            priority=draw(st.integers(0, 2)),
            come_cost=switch.back,
            leave_cost=switch.out,
            gap=draw(st.none() | st.floats(0, 5)),
            max_wait=draw(st.sampled_from((1.0, 60.0, 600.0, float("inf")))),
            min_active=draw(st.sampled_from((0.0, 0.0, 30.0))),
            ttl=draw(st.none() | st.sampled_from((0.0, 20.0))),
        )
        for name in _names[: draw(st.integers(1, len(_names)))]
    }
    arrivals = draw(
        st.lists(
            st.builds(
                Arrival,
                st.integers(0, 300).map(float),
                st.sampled_from(sorted(wishes)),
                st.integers(1, 30).map(float),
            ),
            max_size=25,
        )
    )
    models = {name: wish.gpus for name, wish in wishes.items()}
    gpus = {number: Gpu(ROOM + 1, draw(st.integers(0, 2))) for number in range(3)}
    arrivals.sort(key=lambda arrival: arrival.at)
    return Trace("drawn", switch, 0, models, arrivals, gpus=gpus), wishes


@settings(deadline=None)
@given(_traces())
def test_everybody_is_served_or_refused_with_reason(
    drawn: tuple[Trace, dict[str, ModelView]],
) -> None:
    trace, wishes = drawn
    watched = Watched(trace, wishes)
    world = World(trace, watched)
    world.run()
    assert len(world.waits) + len(watched.refused) == len(trace.arrivals)


def _clients(names: str, each: int) -> Iterator[Arrival]:
    for number, name in enumerate(names):
        for client in range(each):
            yield Arrival(number * 0.5 + client * 0.1, name, 2.0, more=30, think=0.2)


@st.composite
def _agents(draw: st.DrawFn) -> tuple[Trace, dict[str, ModelView]]:
    """Clients that never let go of their model, on one GPU, and as much time as they need."""
    names = _names[: draw(st.integers(2, 5))]
    each = draw(st.integers(1, 2))
    switch = Switch("drawn", draw(st.integers(1, 20)) / 1, draw(st.integers(1, 20)) / 1)
    slowest = 1.15 * (switch.out + switch.back) + 2.0 * each
    max_wait = (len(names) + 1) * slowest
    wishes = {
        name: ModelView(
            name,
            frozenset({0}),
            Stage.OUT,
            priority=draw(st.integers(0, 2)),
            come_cost=1.15 * switch.back,
            leave_cost=1.15 * switch.out,
            drain_cost=2.0 * each,
            gap=draw(st.none() | st.just(0.2)),
            max_wait=max_wait,
            min_active=draw(st.sampled_from((0.0, 0.0, 200.0))),
        )
        for name in names
    }
    models = {name: frozenset({0}) for name in names}
    trace = Trace("agents", switch, max_wait, models, list(_clients(names, each)))
    return replace(trace, gpus={0: Gpu(ROOM)}), wishes


@settings(deadline=None, max_examples=60)
@given(_agents())
def test_no_request_waits_longer_than_max_wait_and_one_switch(
    drawn: tuple[Trace, dict[str, ModelView]],
) -> None:
    trace, wishes = drawn
    watched = Watched(trace, wishes)
    world = World(trace, watched)
    world.run()
    switch = max(wish.turn_cost for wish in wishes.values())
    assert max(world.waits) <= trace.max_wait + switch


def test_the_traces_are_worth_their_name() -> None:
    """The agents do take the GPU from each other, and keep it for more than one request."""
    models = {name: frozenset({0}) for name in "ab"}
    switch = Switch("drawn", 5.0, 5.0)
    trace = Trace("agents", switch, 600, models, list(_clients("ab", 1)), gpus={0: Gpu(ROOM)})
    wishes = {
        name: ModelView(name, gpus, Stage.OUT, come_cost=5.0, leave_cost=7.0, gap=0.2, max_wait=600)
        for name, gpus in models.items()
    }
    watched = Watched(trace, wishes)
    world = World(trace, watched)
    world.run()
    assert 2 <= watched.drains <= 6
    assert len(world.waits) == 62
