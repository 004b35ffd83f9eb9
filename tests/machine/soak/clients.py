# SPDX-License-Identifier: MIT
"""The clients, and what became of each request."""

import asyncio
import hashlib
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

import aiohttp

from ..images.fake_engine import WORDS

CLIENTS = 20
URL = "http://127.0.0.1:4000/v1/completions"
# A request's time (see models.py) is over long before; what takes longer hangs.
HUNG = 75.0
# A connection whose other end was killed is seen to break within so many seconds.
NOTICED = 3.0

# How llmuxd says that a server is gone, and that a request's time is over.
LOST = "502 backend_lost"
LATE = "504 request_timeout"


class End(StrEnum):
    """How a request ended, for the table."""

    RIGHT = "right"
    REFUSED = "refused"
    LEFT = "left"
    WRONG = "wrong"
    LOST = "lost"
    HUNG = "hung"


@dataclass
class Row:
    """What became of the requests that were sent during one kind of fault, or broken by it.

    Of its `turns` the fault came `times` times: not where the moment that it needs did not.
    """

    fault: str
    turns: int = 0
    times: int = 0
    ends: Counter[End] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)

    def count(self, end: End, how: str, model: str) -> None:
        """One request ended so; `how` says more of it."""
        self.ends[end] += 1
        if end is End.REFUSED:
            self.refusals[how] += 1
        elif end in (End.WRONG, End.LOST, End.HUNG):
            self.samples.append(f"{time.strftime('%H:%M:%S')} {model}: {how}")


@dataclass
class Excuse:
    """Whose connections a fault itself breaks, and when; `models` None: everybody's.

    `row` is the fault's. What it breaks was often sent before it.
    """

    row: Row
    models: frozenset[str] | None
    at: float

    def holds(self, model: str, begun: float, ended: float) -> bool:
        """Whether a request that was in flight then may have been broken by it."""
        mine = self.models is None or model in self.models
        return mine and begun <= self.at <= ended <= self.at + NOTICED


def expected(model: str, prompt: str, tokens: int) -> str:
    """What the fake engine says, by its own recipe."""
    words = WORDS.split()
    digests = (
        hashlib.sha256(f"{model}\n{prompt}\n\n{number}".encode()).digest()
        for number in range(tokens)
    )
    return "".join(f" {words[digest[0] % len(words)]}" for digest in digests)


class Load:
    """Twenty clients without a pause. `row` takes what begins now."""

    def __init__(self, models: list[str], chance: random.Random):
        self.models = models
        self.row = Row("warming up")
        self.excuses: list[Excuse] = []
        # In a burst of these, clients leave at any moment.
        self.hurried = False
        # Answers of seconds: a model that is to leave drains for as long.
        self.lengthy = False
        # The engine takes some requests and never answers them.
        self.unanswered = False
        # The fault because of which models keep their GPUs until a request's time is over.
        self.stalled: Row | None = None
        self._chance = chance
        self._running: set[asyncio.Task[None]] = set()
        self._unanswered: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Send from now on."""
        self._tasks = [asyncio.create_task(self._client()) for _ in range(CLIENTS)]

    async def stop(self) -> None:
        """Send no more; what was sent is waited for."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.settled()

    async def settled(self) -> None:
        """Wait for the end of all that runs now."""
        if self._running:
            await asyncio.wait(set(self._running))

    async def answered(self) -> None:
        """Wait until no request is left that the engine never answers."""
        if self._unanswered:
            await asyncio.wait(set(self._unanswered))

    def excuse(self, models: set[str] | None) -> None:
        """Connections to these models, or to llmuxd, break now."""
        held = None if models is None else frozenset(models)
        self.excuses.append(Excuse(self.row, held, time.monotonic()))

    async def _client(self) -> None:
        while True:
            never = self.unanswered and self._chance.random() < 0.3
            task = asyncio.create_task(self._one(self.row, never))
            for tasks in (self._running, self._unanswered) if never else (self._running,):
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            # A client that is told to stop lets its request end.
            await asyncio.shield(task)
            await asyncio.sleep(self._chance.uniform(0.0, 0.1))

    async def _one(self, row: Row, never: bool) -> None:
        model = self._chance.choice(self.models)
        prompt, tokens = f"{self._chance.random()}", self._chance.randint(3, 12)
        if self.lengthy:
            tokens *= 8
        body = {
            "model": model, "prompt": prompt, "max_tokens": tokens,
            "stream": self._chance.random() < 0.5,
            "fake": {"seconds_per_token": 0.02, "never": never},
        }  # fmt: skip
        patience = self._chance.uniform(0.0, 4.0) if self.hurried else HUNG
        begun = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                end, how = await request(body, expected(model, prompt, tokens))
        except TimeoutError:
            end, how = (End.LEFT, "") if self.hurried or patience < HUNG else (End.HUNG, "no end")
        ended = time.monotonic()
        for excuse in self.excuses:
            # An answer that had not begun is refused, one that had is broken.
            if (end is End.LOST or how == LOST) and excuse.holds(model, begun, ended):
                row, end, how = excuse.row, End.REFUSED, how if how == LOST else "broken"
        if how == LATE and self.stalled is not None:
            row = self.stalled
        if end is not End.REFUSED:
            how += f" after {ended - begun:.1f} s"
        row.count(end, how, model)


async def request(body: dict[str, object], wanted: str) -> tuple[End, str]:
    """Send one, on a connection of its own."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
            session.post(URL, json=body) as response,
        ):
            text = await response.text()
            if response.status != 200:
                return _refusal(response.status, text)
            return _judge(_said(text, bool(body["stream"])), wanted)
    except (aiohttp.ClientError, OSError) as error:
        return End.LOST, f"{type(error).__name__} {error}"


def _said(text: str, streamed: bool) -> str | None:
    """The answer's text; None where it has no end."""
    if not streamed:
        return str(json.loads(text)["choices"][0]["text"])
    events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        return None
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def _judge(said: str | None, wanted: str) -> tuple[End, str]:
    if said is None:
        return End.LOST, "a stream that ends in the middle as if it were whole"
    return (End.RIGHT, "") if said == wanted else (End.WRONG, f"{said!r}, not {wanted!r}")


def _refusal(status: int, text: str) -> tuple[End, str]:
    """Proper is a 4xx or 5xx in the API's own shape."""
    try:
        error = json.loads(text)["error"]
        message, code = str(error["message"]), error.get("code") or ""
    except (ValueError, KeyError, TypeError, AttributeError):
        message = code = ""
    if not message or "Traceback" in message or not 400 <= status < 600:
        return End.WRONG, f"status {status}: {text[:200]!r}"
    return End.REFUSED, f"{status} {code}".strip()
