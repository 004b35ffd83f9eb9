# SPDX-License-Identifier: MIT
"""The metrics of the running models' servers, with the model's name added to each sample.

The text is rewritten line by line, not parsed to numbers: vLLM says some 500 lines, and a parser
in Python would hold the interpreter for tens of milliseconds at each scrape.
"""

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp

from ..backend import Backend
from ..pool import BackendGone
from ..switcher import Switcher

log = logging.getLogger(__name__)

# Prometheus gives up after 10 s by default, and one engine that hangs must not cost the others.
TIMEOUT = 2.0
# vLLM's page has about 60 kB.
MAX_SIZE = 4 << 20

_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\.)*"'
_SAMPLE = re.compile(
    rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{{((?:{_LABEL},)*(?:{_LABEL})?)\}})? (\S+)(?: -?\d+)?$"
)
_COMMENT = re.compile(r"# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.*)$")
_VALUE = re.compile(r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+|Inf|NaN)$", re.IGNORECASE)
_PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
# Labels that are numbers; OpenMetrics writes 1 as 1.0.
_NUMBERS = ("le", "quantile")
_SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("", "_sum", "_count"),
    "gauge": ("",),
    "unknown": ("",),
}


@dataclass
class _Family:
    """`samples`: each line once, by what it is of."""

    type: str
    help: str
    samples: dict[tuple[str, ...], str] = field(default_factory=dict)


class Pages:
    """The engines' pages, merged. OpenMetrics wants each family once, and whole; a label or sample
    that is there twice has Prometheus refuse the page, and with it what all others say."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}
        # Whose each name is: the sum of a histogram and a gauge may have one.
        self._owners: dict[str, str] = {}

    def add(self, model: str, text: str) -> None:
        """One engine's, in Prometheus' text format; what is not understood is left out."""
        label = json.dumps(model, ensure_ascii=False)[1:-1]
        types: dict[str, str] = {}
        helps: dict[str, str] = {}
        # Not splitlines: other separators than this may be in a label.
        for line in text.split("\n"):
            line = line.rstrip("\r")
            if line.startswith("#"):
                comment = _COMMENT.match(line)
                if comment:
                    kind, name, rest = comment.groups()
                    (types if kind == "TYPE" else helps)[name] = rest
            elif sample := _SAMPLE.match(line):
                self._sample(label, types, helps, *sample.groups())

    def text(self) -> str:
        """All families in OpenMetrics, without the end."""
        lines: list[str] = []
        for name, family in self._families.items():
            lines.append(f"# TYPE {name} {family.type}")
            if family.help:
                lines.append(f"# HELP {name} {family.help}")
            lines += family.samples.values()
        return "".join(f"{line}\n" for line in lines)

    def _sample(
        self, label: str, types: dict[str, str], helps: dict[str, str],
        name: str, labels: str | None, value: str,
    ) -> None:  # fmt: skip
        found = _family_of(name, types)
        # Ours are ours alone, and when a counter began nobody asks.
        if found is None or name.startswith("llmux_") or not _VALUE.match(value):
            return
        family_name, kind, told = found
        pairs = [("model", label), *_pairs(labels or "")]
        if len(dict(pairs)) < len(pairs) or not self._claim(family_name, kind):
            return
        family = self._families.setdefault(family_name, _Family(kind, helps.get(told, "")))
        written = [f'{key}="{text}"' for key, text in pairs]
        family.samples.setdefault(
            (name, *sorted(written)), f"{name}{{{','.join(written)}}} {value}"
        )

    def _claim(self, family: str, kind: str) -> bool:
        """Whether the family is of this type, and all names of its samples are its own."""
        known = self._families.get(family)
        if known is not None:
            return known.type == kind
        names = [family, *(family + suffix for suffix in _SUFFIXES[kind])]
        if any(name in self._owners for name in names):
            return False
        self._owners.update(dict.fromkeys(names, family))
        return True


def _pairs(labels: str) -> Iterator[tuple[str, str]]:
    for key, value in _PAIR.findall(labels):
        if key == "model":
            yield "exported_model", value
        elif key in _NUMBERS and value.isdecimal():
            yield key, f"{value}.0"
        else:
            yield key, value


def _family_of(name: str, types: dict[str, str]) -> tuple[str, str, str] | None:
    """Name and type of a sample's family in OpenMetrics, and its name in the text format."""
    if name.endswith("_created"):
        return None
    kind = types.get(name, "")
    if kind == "counter":
        # OpenMetrics wants `_total` at each sample and not in the family's name.
        stem = name.removesuffix("_total")
        return (stem, kind, name) if stem != name else (name, "unknown", name)
    if kind in ("gauge", "summary"):
        return name, kind, name
    for suffix in ("_bucket", "_sum", "_count", "_total"):
        stem = name.removesuffix(suffix)
        kind = types.get(stem, "")
        if stem != name and suffix in _SUFFIXES.get(kind, ()):
            return stem, kind, stem
    return name, "unknown", name


async def ask(switcher: Switcher) -> dict[str, str]:
    """The page of each model that serves; nobody is woken for it."""
    asked = {
        name: backend
        for name in switcher.names()
        if (backend := switcher.model(name).backend) is not None
    }
    pages = await asyncio.gather(*(_page(name, backend) for name, backend in asked.items()))
    return {name: page for name, page in zip(asked, pages, strict=True) if page}


def _head(backend: Backend) -> bytes:
    return b"GET /metrics HTTP/1.1\r\nHost: %b\r\n\r\n" % backend.pool.host


async def _page(name: str, backend: Backend) -> str:
    try:
        async with (
            asyncio.timeout(TIMEOUT),
            backend,
            await backend.pool.ask(_head(backend)) as response,
        ):
            if response.status != 200:
                return ""
            raw = bytearray()
            async for chunk in response.body.iter_any():
                raw += chunk
                if len(raw) > MAX_SIZE:
                    raise ValueError("its page is too large")
            return raw.decode()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, BackendGone) as error:
        log.debug("%s: no metrics: %s", name, error)
        return ""
