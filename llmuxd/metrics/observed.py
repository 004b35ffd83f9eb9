# SPDX-License-Identifier: MIT
"""What is true of the models and GPUs at the moment in which somebody asks."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .. import names
from ..costs import Cost
from ..gpus import Gpus
from ..model import cgroup
from ..state import State
from ..switcher import Switcher

_WAYS = (Cost.COLD, Cost.RESTORE, Cost.RESUME, Cost.OUT, Cost.PARK)


@dataclass(frozen=True)
class Observed:
    """One look, taken in the event loop; `families` may be asked for in a thread."""

    models: tuple["_Model", ...]
    gpu_totals: dict[int, int]
    gpu_used: dict[int, int]
    queue: int
    attached: bool

    def families(self) -> Iterator[Metric]:
        """All of it, as Prometheus' types."""
        yield from self._of_models()
        yield from self._of_gpus()
        queue = GaugeMetricFamily("llmux_queue_length", "Requests that wait for a model")
        queue.add_metric([], self.queue)
        yield queue
        attached = GaugeMetricFamily("llmux_systemd_attached", "1 while systemd is heard")
        attached.add_metric([], self.attached)
        yield attached

    def _of_models(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("llmux_model_state", "1 for its state", labels=["model", "state"])
        flight = GaugeMetricFamily("llmux_in_flight", "Requests it answers", labels=["model"])
        queued = GaugeMetricFamily("llmux_queued", "Requests that wait for it", labels=["model"])
        failed = CounterMetricFamily("llmux_failed_starts", "Failed starts", labels=["model"])
        moves = CounterMetricFamily(
            "llmux_failed_moves", "Ways that it did not go as wanted", labels=["model", "phase"]
        )
        image = GaugeMetricFamily("llmux_checkpoint_bytes", "Its image on disk", labels=["model"])
        memory = GaugeMetricFamily(
            "llmux_model_memory_bytes", "Host memory of its unit", labels=["model"]
        )
        gpu = GaugeMetricFamily("llmux_model_gpu_bytes", "GPU memory", labels=["model", "gpu"])
        for model in self.models:
            for known in State:
                state.add_metric([model.name, known.value], known is model.state)
            flight.add_metric([model.name], model.in_flight)
            queued.add_metric([model.name], model.queued)
            failed.add_metric([model.name], model.failed_starts)
            for cost, count in model.failed_moves.items():
                moves.add_metric([model.name, cost.value], count)
            image.add_metric([model.name], model.checkpoint_bytes)
            held = _memory(model.name)
            if held is not None:
                memory.add_metric([model.name], held)
            for number, size in model.gpus.items():
                gpu.add_metric([model.name, str(number)], size)
        yield from (state, flight, queued, failed, moves, image, memory, gpu)

    def _of_gpus(self) -> Iterator[Metric]:
        total = GaugeMetricFamily("llmux_gpu_total_bytes", "Its memory", labels=["gpu"])
        used = GaugeMetricFamily("llmux_gpu_used_bytes", "Taken, by whomever", labels=["gpu"])
        for number, size in self.gpu_totals.items():
            total.add_metric([str(number)], size)
            used.add_metric([str(number)], self.gpu_used[number])
        yield from (total, used)


@dataclass(frozen=True)
class _Model:
    name: str
    state: State
    in_flight: int
    queued: int
    failed_starts: int
    failed_moves: dict[Cost, int]
    checkpoint_bytes: int
    gpus: dict[int, int]


def look(switcher: Switcher, gpus: Gpus) -> Observed:
    """What is true now."""
    held = gpus.held()
    models = []
    for name in switcher.names():
        model = switcher.model(name)
        models.append(
            _Model(
                name=name,
                state=switcher.state(name),
                in_flight=model.in_flight,
                queued=model.queued,
                failed_starts=model.failed_starts,
                failed_moves={way: model.failed_moves[way] for way in _WAYS},
                checkpoint_bytes=model.checkpoint.size if model.checkpoint else 0,
                gpus=held.get(name, {}),
            )
        )
    return Observed(
        models=tuple(models),
        gpu_totals={gpu.number: gpu.total for gpu in gpus.measured},
        gpu_used={gpu.number: gpu.used for gpu in gpus.measured},
        queue=switcher.queue_length(),
        attached=switcher.attached,
    )


def _memory(name: str) -> int | None:
    """What the kernel accounts to the model's unit, in bytes; None where it does not."""
    try:
        return int((_cgroup(name) / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=1024)
def _cgroup(name: str) -> Path:
    # An instance is in a slice of its template (systemd.unit(5)), whose dash is escaped.
    return cgroup.ROOT / "system.slice" / r"system-llmux\x2dmodel.slice" / names.unit(name)
