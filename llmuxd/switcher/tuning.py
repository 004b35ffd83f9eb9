# SPDX-License-Identifier: MIT
"""Measuring what a model best lets go of: it leaves and comes back in each way, a few times.

Each coming back is by the policy, as for any operator: others' requests have their turns meanwhile,
and those for the model itself are served before it leaves again.
"""

import asyncio
import time
from collections.abc import Callable

from .. import memory
from ..config import ModelConfig, Sleep, Snapshot, Tier
from ..costs import median
from ..errors import LlmuxError, ModelFailed, NotSupported
from ..model import canary, vllm
from ..model.activation import Activation, Leave, Way
from ..model.checkpoint import Checkpoint
from ..model.server import WrongAnswer
from ..model.tuning import KEYS, Figures, Tuning, best, open_tiers, why_nothing_open
from ..state import State
from .admission import Admission
from .costbook import CostBook
from .fleet import Fleet
from .leaving import Leaving, Trial
from .models import Model, Wish, now
from .transitions import Transitions

ROUNDS = 3
# A way that takes so many times the best one's seconds to come back is measured but once.
HOPELESS = 2.0
# Seconds after which no round is begun: eight ways of a 3B model take ten minutes.
LIMIT = 3600.0

# The ways in which all of it comes into memory, or may: level 1 has the weights there.
_HOLDS_ALL = (Sleep.OFF, Sleep.LEVEL_1)
_WAYS = {Tier.PARK: Way.RESUME, Tier.CHECKPOINT: Way.RESTORE}


class _Out(Exception):
    """This way is out of the question; one line says why."""


def refuse_if_vain(model: ModelConfig) -> None:
    """NotSupported where nobody could tell whether the model came back as it was."""
    if open_tiers(model) and not canary.is_asked(model):
        raise NotSupported(
            f"{model.name!r} cannot be tuned: nothing would show that it came back as it was",
            "its configuration says canary: false",
        )


class Tuner:
    """One model's measurement. `tell` hears which step of it comes.

    `nothing`: why there was nothing to measure; empty as long as that is not known.
    """

    def __init__(
        self,
        fleet: Fleet,
        admission: Admission,
        transitions: Transitions,
        leaving: Leaving,
        book: CostBook,
        model: Model,
        tell: Callable[[str], None],
    ):
        self.nothing = ""
        self._fleet = fleet
        self._admission = admission
        self._transitions = transitions
        self._leaving = leaving
        self._book = book
        self._model = model
        self._tell = tell
        self._given_up = False
        self._deadline = now() + LIMIT
        self._figures: list[Figures] = []
        self._late: set[tuple[Tier, Sleep]] = set()  # for which there was no time

    def give_up(self) -> bool:
        """Begin no other round. False: whatever waits just now need not be waited for."""
        self._given_up = True
        return False

    async def run(self) -> None:
        """Measure and keep what was found; it holds from the model's next start on."""
        self.nothing = _nothing(why_nothing_open(self._model.config))
        self._model.measured = None if self.nothing else ()
        if self.nothing:
            return
        self._model.tried = True
        try:
            await self._secure()
            await self._measure()
        finally:
            self._model.tried = False

    def verify(self) -> None:
        """ModelFailed where it came back in no way from a tier: its default is none either."""
        for tier in KEYS:
            left = [each for each in self._figures if each.tier is tier]
            usual = vllm.default(self._model.config, tier)
            if left and all(each.failed and (tier, each.sleep) not in self._late for each in left):
                shown = next((each for each in left if each.sleep is usual), left[0])
                raise ModelFailed(
                    f"{self._model.name!r} came back in no way of {KEYS[tier]}; "
                    f"in way {shown.sleep}: {shown.failed}",
                    f"'llmuxctl logs {self._model.name}' shows more",
                )

    async def _secure(self) -> None:
        """Have on disk what a live model has come to: one that does not wake goes back to that."""
        model = self._model
        at_rest = (State.COLD, State.FAILED, State.CHECKPOINTED)
        if not _is_live(model.config) or self._fleet.state(model) in at_rest:
            return
        self._tell("writing a checkpoint first")
        if self._fleet.state(model) is State.PARKED:
            # Its helper takes no GPU from anybody for a dump, and ends what has not the room.
            await self._come()
        await self._transitions.command(model, self._leaving.end(model, Leave.CHECKPOINT))
        why = self._fleet.why_no_checkpoint(model)
        if why:
            raise ModelFailed(
                f"{model.name!r} is not tuned, for no checkpoint of it was written: {why}",
                f"'llmuxctl logs {model.name}' shows more",
            )

    async def _measure(self) -> None:
        model = self._model
        before = model.checkpoint
        run = await self._come()
        offered = await self._ask(run)
        tiers = open_tiers(model.config)
        for sleep in offered:
            for tier in tiers:
                self._figures.append(await self._try(tier, sleep))
                model.measured = tuple(self._figures)
                self._fleet.tell(model.name)
        assert run.identity is not None
        if (await self._come()).identity != run.identity:
            raise ModelFailed(f"{model.name!r} became another while it was measured")
        chosen = {tier: found for tier in tiers if (found := self._best(tier))}
        why = "" if offered else "vLLM's sleep mode is off (--enable-sleep-mode)"
        self.nothing = _nothing(why)
        await self._keep(
            Tuning(model.name, run.identity, time.time(), tuple(self._figures), chosen, why)
        )
        if offered and not _is_live(model.config):
            await self._end(before)

    def _best(self, tier: Tier) -> Sleep | None:
        """What is chosen; nothing without the default to compare with, for which no time was."""
        late = (tier, vllm.default(self._model.config, tier)) in self._late
        return None if late else best(self._figures, tier)

    async def _keep(self, tuning: Tuning) -> None:
        try:
            await asyncio.to_thread(tuning.save)
        except OSError as error:
            raise LlmuxError(f"what was measured cannot be kept: {error.strerror}") from None
        self._model.tuning, self._model.measured = tuning, None
        self._fleet.changed(self._model)

    async def _try(self, tier: Tier, sleep: Sleep) -> Figures:
        """One way, as often as it is worth it."""
        rounds: list[tuple[float, float, int]] = []
        before = [each.back for each in self._figures if each.tier is tier and not each.failed]
        failed = self._lacks_memory() if sleep in _HOLDS_ALL else ""
        try:
            while not failed and len(rounds) < ROUNDS and not self._is_hopeless(rounds, before):
                if now() > self._deadline:
                    if rounds:
                        break
                    self._late.add((tier, sleep))
                    raise _Out(f"{LIMIT / 60:.0f} min were over before it was measured")
                self._tell(f"{KEYS[tier]} {sleep}, {len(rounds) + 1} of {ROUNDS}")
                measured = await self._round(tier, sleep)
                if measured is not None:
                    rounds.append(measured)
        except _Out as error:
            failed = str(error)
        if not rounds:
            return Figures(tier, sleep, failed=failed)
        out, back, size = (median(values) for values in zip(*rounds, strict=True))
        return Figures(tier, sleep, out, back, int(size), len(rounds), failed)

    def _lacks_memory(self) -> str:
        """Why the host cannot hold all that the model has on its GPUs; empty where it can.

        On its way to disk that is in memory too. Its helper looks again, at what is there then: it
        would have to end the model to say so.
        """
        held = (self._book.needs.known(self._model.name) or 0) * len(self._model.held)
        spare = memory.spare()
        if held <= spare:
            return ""
        return (
            f"it holds {held / 1e9:.1f} GB of its GPUs, and the host has {spare / 1e9:.1f} to spare"
        )

    def _is_hopeless(self, rounds: list[tuple[float, float, int]], before: list[float]) -> bool:
        return bool(rounds and before) and rounds[0][1] > HOPELESS * min(before)

    async def _round(self, tier: Tier, sleep: Sleep) -> tuple[float, float, int] | None:
        """Out and back: the seconds of both, and the bytes held; None where others had it leave."""
        model, trial = self._model, Trial(sleep)
        await self._come()
        if tier is Tier.PARK:
            leave = self._leaving.park(model, trial)
        else:
            leave = self._leaving.end(model, Leave.CHECKPOINT, trial)
        try:
            await self._transitions.command(model, leave)
        except LlmuxError as error:
            raise _Out(error.message) from None
        if trial.seconds is None:
            return None
        size = model.parked_memory if tier is Tier.PARK else _image(model, sleep)
        if tier is Tier.CHECKPOINT:
            # As when another one leaves for it.
            self._leaving.read_image_ahead(model)
        failures = model.failed_starts
        run = await self._come()
        if run.way is not _WAYS[tier]:
            failed = model.failed_why if model.failed_starts > failures else run.why_cold
            raise _Out(failed or f"it came back by {run.way}")
        return trial.seconds, run.seconds, size

    async def _come(self) -> Activation:
        """Have it serve; what its helper says of the run."""
        if self._given_up:
            raise asyncio.CancelledError
        model = self._model
        # Else two that are measured by turns would send each other away before anything was.
        model.kept = True
        try:
            await self._admission.enter(model, Wish.OPERATOR)
        finally:
            model.kept = False
            self._fleet.changed(model)
        run = model.activation
        if run is None or run.identity is None:
            raise ModelFailed(
                f"what {model.name!r} runs on is not known", f"'llmuxctl stop {model.name}' first"
            )
        return run

    async def _ask(self, run: Activation) -> tuple[Sleep, ...]:
        """What its server can let go of; it stays until that is said, whoever waits."""
        model = self._model
        model.kept = True
        try:
            return await asyncio.to_thread(_offers, model.config, run)
        finally:
            model.kept = False
            self._fleet.changed(model)

    async def _end(self, before: Checkpoint | None) -> None:
        """Have nothing left of it: what it went through, pinned memory say, is in no image.

        One from `before` is kept, where no other has taken its place.
        """
        model = self._model
        self._tell("ending what was measured")
        kept = before is not None and before.valid and not before.trial
        while True:
            await self._come()
            keeps = kept and model.checkpoint == before
            leave = Leave.CHECKPOINT if keeps else Leave.STOP
            await self._transitions.command(model, self._leaving.end(model, leave))
            down = self._fleet.units.status(model.name).down
            if down if keeps else model.checkpoint is None or model.checkpoint.invalid:
                return


def _image(model: Model, sleep: Sleep) -> int:
    """Bytes of the image that was just taken; _Out where there is none."""
    record = model.checkpoint
    if record is None or record.invalid:
        raise _Out(record.invalid if record else "no checkpoint was written")
    if not record.trial:
        raise _Out(f"no other checkpoint was written: 'llmuxctl logs {model.name}' shows why")
    if record.sleep is not sleep:
        raise _Out("the engine did not let go of it")
    return record.size


def _offers(model: ModelConfig, run: Activation) -> tuple[Sleep, ...]:
    """What its server can let go of; ModelFailed where it does not answer, nor its canary."""
    try:
        offered = vllm.offers(run.port, extension=model.drops_kv)
        answers = bool(canary.of_run(run)) or not offered
    except WrongAnswer as error:
        raise ModelFailed(f"{model.name!r} cannot be measured: {error}") from None
    if not answers:
        raise ModelFailed(
            f"{model.name!r} cannot be measured: it refuses its canary",
            "give it a question of its own by 'canary' in llmux.yaml",
        )
    return offered


def _is_live(model: ModelConfig) -> bool:
    """Whether it keeps what it came to."""
    return model.checkpoint and model.snapshot is Snapshot.LIVE


def _nothing(why: str) -> str:
    return f"nothing to tune: {why}" if why else ""
