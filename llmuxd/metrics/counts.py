# SPDX-License-Identifier: MIT
"""What is counted while requests and models come and go.

A request costs four observations here, some 5 µs, and each chunk of a stream one; so the
children of the families are looked up once and kept.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram

from ..costs import Cost

# In seconds. Answers take milliseconds (embeddings) to minutes; switches up to a cold start.
_SPAN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_WAIT = (0.001, 0.01, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
_GAP = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

_PHASES = {
    Cost.COLD: "cold",
    Cost.RESTORE: "restore",
    Cost.RESUME: "resume",
    Cost.OUT: "out",
    Cost.PARK: "park",
    Cost.DRAIN: "drain",
}


@dataclass(slots=True)
class Visit:
    """One request; times are the loop's, in seconds, 0 for what was not reached.

    `model` is the one that was resolved: a name that a client made up is never a label.
    """

    route: str
    began: float
    model: str = ""
    queued: float = 0.0
    admitted: float = 0.0
    first_byte: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def waited(self) -> float:
        """Seconds until its model served."""
        return max(self.admitted - self.queued, 0.0)


class _Children:
    """One model's, of the families that every request touches."""

    __slots__ = ("chunk_gap", "completion", "first_byte", "prompt", "wait", "whole")

    def __init__(self, counts: "Counts", model: str):
        self.whole = counts.whole.labels(model)
        self.wait = counts.wait.labels(model)
        self.first_byte = counts.first_byte.labels(model)
        self.chunk_gap = counts.chunk_gap.labels(model)
        self.prompt = counts.tokens.labels(model, "prompt")
        self.completion = counts.tokens.labels(model, "completion")


class Counts:
    """The families, in `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "llmux_requests", "Requests answered, by status", ["model", "route", "code"],
            registry=self.registry,
        )  # fmt: skip
        self.whole = self._histogram(
            "llmux_request_seconds", "From a request's head to its answer's end", _SPAN
        )
        self.wait = self._histogram(
            "llmux_wait_seconds", "Until the model served: queue and switch", _WAIT
        )
        self.first_byte = self._histogram(
            "llmux_first_byte_seconds", "From the model's turn to its answer's head", _SPAN
        )
        self.chunk_gap = self._histogram(
            "llmux_chunk_gap_seconds", "Between two pieces of a streamed answer", _GAP
        )
        self.tokens = Counter(
            "llmux_tokens", "Tokens, where the engine tells their number", ["model", "kind"],
            registry=self.registry,
        )  # fmt: skip
        self.moves = Histogram(
            "llmux_move_seconds",
            "Ways of a model into and out of its GPU; drain is for each request in flight",
            ["model", "phase"], buckets=_WAIT, registry=self.registry,
        )  # fmt: skip
        self.lag = Histogram(
            "llmux_event_loop_lag_seconds", "How late llmuxd's event loop is",
            buckets=_GAP, registry=self.registry,
        )  # fmt: skip
        self._children: dict[str, _Children] = {}
        self._requests: dict[tuple[str, str, int], Counter] = {}

    def answered(self, visit: Visit, status: int, now: float) -> None:
        """The request has its answer, with this HTTP status; 499 where the client left."""
        key = (visit.model, visit.route, status)
        counter = self._requests.get(key)
        if counter is None:
            counter = self._requests[key] = self.requests.labels(
                visit.model, visit.route, str(status)
            )
        counter.inc()
        if not visit.model:
            return
        children = self._of(visit.model)
        children.whole.observe(now - visit.began)
        if visit.admitted:
            children.wait.observe(visit.waited)
        if visit.first_byte:
            children.first_byte.observe(visit.first_byte - visit.admitted)
        if visit.prompt_tokens:
            children.prompt.inc(visit.prompt_tokens)
        if visit.completion_tokens:
            children.completion.inc(visit.completion_tokens)

    def gaps(self, model: str) -> Histogram:
        """Where the seconds between two chunks are to be observed."""
        return self._of(model).chunk_gap

    def moved(self, model: str, cost: Cost, seconds: float) -> None:
        """A model came, or left, and it took so long."""
        phase = _PHASES.get(cost)
        if phase is not None:
            self.moves.labels(model, phase).observe(seconds)

    def _of(self, model: str) -> _Children:
        children = self._children.get(model)
        if children is None:
            children = self._children[model] = _Children(self, model)
        return children

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, what, ["model"], buckets=buckets, registry=self.registry)
