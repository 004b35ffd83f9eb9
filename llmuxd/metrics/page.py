# SPDX-License-Identifier: MIT
"""GET /metrics."""

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from ..gpus import Gpus
from ..switcher import Switcher
from . import engines, observed
from .counts import Counts

CONTENT_TYPE = CONTENT_TYPE_LATEST
_END = "# EOF\n"


class _Look(Collector):
    """What was seen, as a collector."""

    def __init__(self, seen: observed.Observed):
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        """All of it."""
        return self._seen.families()


class Page:
    """Puts it together, in a thread: hundreds of lines would hold the event loop."""

    def __init__(self, switcher: Switcher, gpus: Gpus, counts: Counts):
        self._switcher = switcher
        self._gpus = gpus
        self._counts = counts
        ProcessCollector(namespace="llmux", registry=counts.registry)

    async def text(self) -> bytes:
        """The page, in OpenMetrics."""
        pages = await engines.ask(self._switcher)
        seen = observed.look(self._switcher, self._gpus)
        return await asyncio.to_thread(self._write, seen, pages)

    def _write(self, seen: observed.Observed, pages: dict[str, str]) -> bytes:
        now = CollectorRegistry()
        now.register(_Look(seen))
        merged = engines.Pages()
        for model, text in pages.items():
            merged.add(model, text)
        ours = (
            generate_latest(registry).decode().removesuffix(_END)
            for registry in (self._counts.registry, now)
        )
        return "".join([*ours, merged.text(), _END]).encode()
