# SPDX-License-Identifier: MIT
"""Who asks for what and when: reproducible traces, each with the switch that it is played on.

Switch costs were measured on one H100 (80 GB) with vLLM 0.8.3; which row a trace takes stands
beside it. They vary by JITTER from one switch to the next.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

from llmuxd.policy import Gpu

GIB = 1 << 30
JITTER = 0.15


@dataclass(frozen=True)
class Switch:
    """Seconds to leave the GPU, seconds to come back."""

    what: str
    out: float
    back: float


# Qwen2.5-3B each.
SEED_FLOW = Switch("podman checkpoint as it stands", 29.3, 19.7)
PARKED_AS_IS = Switch("park as it stands", 12.5, 6.1)
KV_DROPPED = Switch("image without KV cache", 8.5, 9.1)
LEVEL_2 = Switch("image after sleep level 2", 2.8, 4.4)
PARKED = Switch("park after sleep level 2", 0.6, 1.7)


@dataclass(frozen=True)
class Arrival:
    """One request: `work` is the seconds of a whole GPU that its answer takes.

    A client that sends one after the other has `more` to send, each `think` seconds after the
    answer.
    """

    at: float
    model: str
    work: float
    more: int = 0
    think: float = 0.0


@dataclass(frozen=True)
class Trace:
    """A load to play. `max_wait` is in seconds, for all models."""

    name: str
    switch: Switch
    max_wait: float
    models: dict[str, frozenset[int]]
    arrivals: list[Arrival]
    vram: dict[str, int] = field(default_factory=dict)
    gpus: dict[int, Gpu] = field(default_factory=dict)
    seed: int = 0

    @property
    def bound(self) -> float:
        """The longest wait that is allowed: `max_wait`, and one switch at its slowest."""
        return self.max_wait + (1 + JITTER) * (self.switch.out + self.switch.back)

    @property
    def used(self) -> set[int]:
        """The GPUs that take part."""
        return {gpu for gpus in self.models.values() for gpu in gpus}


def traces(seed: int) -> list[Trace]:
    """All of them, as this seed has them."""
    makers = (steady, bursts, hot, alternation, agents, zipf, two_gpus, together)
    return [replace(make(Random(seed)), seed=seed) for make in makers]


def steady(random: Random) -> Trace:
    """Four models, each asked at random moments, the GPU half busy."""
    models = _on_gpu_0("abcd")
    arrivals = [
        Arrival(at, name, random.uniform(1, 3))
        for name in models
        for at in _poisson(random, every=16.0, until=7200)
    ]
    return Trace("steady mix", PARKED, 60, models, _sorted(arrivals))


def bursts(random: Random) -> Trace:
    """Four models; somebody sends 30 requests at once, every other minute."""
    models = _on_gpu_0("abcd")
    arrivals = [
        Arrival(at + random.uniform(0, 5), name, random.uniform(0.5, 1.5))
        for at in _poisson(random, every=60.0, until=14400)
        for name in [random.choice(list(models))]
        for _ in range(30)
    ]
    return Trace("bursts", LEVEL_2, 300, models, _sorted(arrivals))


def hot(random: Random) -> Trace:
    """One model keeps the GPU busy for most of the time, six others want it at times."""
    models = _on_gpu_0("hxyzuvw")
    arrivals = [
        Arrival(at, "h", random.uniform(1, 3)) for at in _poisson(random, every=3.5, until=14400)
    ]
    for name in "xyzuvw":
        arrivals += [
            Arrival(at, name, random.uniform(1, 3))
            for at in _poisson(random, every=300.0, until=14400)
        ]
    return Trace("hot and trickles", LEVEL_2, 120, models, _sorted(arrivals))


def alternation(random: Random) -> Trace:
    """Three models strictly in turn, at the seed's switch."""
    models = _on_gpu_0("abc")
    arrivals = [
        Arrival(3.4 * number, "abc"[number % 3], random.uniform(1.5, 2.5)) for number in range(6000)
    ]
    return Trace("alternation", SEED_FLOW, 900, models, arrivals)


def agents(random: Random) -> Trace:
    """Three clients, each with its model, that send one request after the other."""
    models = _on_gpu_0("abc")
    arrivals = [
        Arrival(0.1 * number, name, random.uniform(1.5, 2.5), 999, 0.5)
        for number, name in enumerate(models)
    ]
    return Trace("agents", SEED_FLOW, 900, models, arrivals)


def zipf(random: Random) -> Trace:
    """Fifty models, the n-th asked for 1/n as often as the first."""
    models = _on_gpu_0([f"m{number:02}" for number in range(1, 51)])
    weights = [1 / number for number in range(1, 51)]
    arrivals = [
        Arrival(at, random.choices(list(models), weights)[0], random.uniform(0.5, 2.5))
        for at in _poisson(random, every=3.5, until=14400)
    ]
    return Trace("50 models, Zipf", PARKED, 300, models, arrivals)


def two_gpus(random: Random) -> Trace:
    """Three models on each of two GPUs, and one that needs both."""
    models = {name: frozenset({0}) for name in "abc"} | {name: frozenset({1}) for name in "def"}
    models["big"] = frozenset({0, 1})
    arrivals = [
        Arrival(at, name, random.uniform(1, 3))
        for name in models
        for at in _poisson(random, every=120.0 if name == "big" else 18.0, until=14400)
    ]
    return Trace("two GPUs", PARKED_AS_IS, 300, models, _sorted(arrivals))


def together(random: Random) -> Trace:
    """Five models of which two or three fit on the GPU together; the peers know no sizes."""
    vram = {"a": 20 * GIB, "b": 25 * GIB, "c": 30 * GIB, "d": 40 * GIB, "e": 50 * GIB}
    models = _on_gpu_0(vram)
    arrivals = [
        Arrival(at, name, random.uniform(1, 3))
        for name in models
        for at in _poisson(random, every=20.0, until=14400)
    ]
    gpus = {0: Gpu(79 * GIB, GIB)}
    return Trace("fit together", KV_DROPPED, 300, models, _sorted(arrivals), vram, gpus)


def _on_gpu_0(names: "str | list[str] | dict[str, int]") -> dict[str, frozenset[int]]:
    return {name: frozenset({0}) for name in names}


def _poisson(random: Random, every: float, until: float) -> Iterator[float]:
    at = random.expovariate(1 / every)
    while at < until:
        yield at
        at += random.expovariate(1 / every)


def _sorted(arrivals: list[Arrival]) -> list[Arrival]:
    return sorted(arrivals, key=lambda arrival: arrival.at)
