# SPDX-License-Identifier: MIT
"""Parking a model in host memory: off its GPU, its container frozen, its unit active; and back.

It happens in the unit, by its ExecReload: `systemctl reload` of a parked model wakes it. What has
no GPU is just frozen.
"""

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from .. import files, loggers
from ..events import Event, about
from . import canary, cgroup, freezer, signals, vllm
from .activation import Activation, parked_path, parked_vram
from .moves import Stopwatch
from .server import WrongAnswer

# What is needed by a model with a GPU that is parked or woken alone: a start would wait for it.
LATER = ("gpu", "vram")

log = loggers.named("llmux-model")

# Each step of the driver: 80 GB at the 2 GB/s that were measured on an H100 take 40 s.
STEP_LIMIT = 240.0


class CannotPark(Exception):
    """The model stays as it was; one line says why."""


class CannotWake(Exception):
    """The model did not come back as it was, and must be ended; one line says why."""


class NoPlace(CannotWake):
    """It stays parked, as it was: somebody else has the memory of its GPU; one line says who."""


@dataclass(frozen=True)
class Parked:
    """What has to be undone: the requests that wake its engine, and its canary before they did.

    `whole`: it got to its end; one that did not may hold its GPU still. `held` is what it takes of
    the host's memory, in bytes; `vram` what it took of its GPUs, by their numbers, where that was
    measured.
    """

    back: tuple[str, ...] = ()
    canary: str = ""
    whole: bool = False
    held: int = 0
    vram: dict[int, int] = field(default_factory=dict)

    @classmethod
    def load(cls, model: str) -> "Parked | None":
        """Of a model that was parked, or half-way; None of any other."""
        raw = files.read_json(parked_path(model))
        if raw is None:
            return None
        return cls(
            back=files.texts(raw.get("back")),
            canary=str(raw.get("canary", "")),
            whole=raw.get("whole") is True,
            held=int(str(raw.get("held", 0))),
            vram=parked_vram(model),
        )

    def save(self, model: str) -> None:
        """Before the first step: whoever comes after a crash in the middle has to wake it."""
        files.write_json(parked_path(model), asdict(self))

    @staticmethod
    def forget(model: str) -> None:
        """It is back, or gone."""
        parked_path(model).unlink(missing_ok=True)


def park(activation: Activation, watch: Stopwatch, trial: bool = False) -> None:
    """Leave the model nothing but host memory: off its GPUs, then its container frozen.

    Nothing is asked of one that is parked already: frozen, it would not answer. One that was left
    half-way is put back first; CannotWake where it does not come back. A `trial` is there to be
    measured, and is not worth a risk.
    """
    before = Parked.load(activation.model)
    if before is not None and before.whole:
        return
    wake(activation, watch)
    if not activation.payload:
        raise CannotPark("its container has no cgroup of its own to be frozen")
    answer = _ask_canary(activation, watch)
    parked = (
        _leave_gpu(activation, answer, watch, trial)
        if activation.devices
        else Parked(canary=answer)
    )
    parked.save(activation.model)
    try:
        with watch.part("freeze"):
            _hold_still(activation)
    except freezer.NotFrozen as error:
        _put_back(activation)
        raise CannotPark(f"its container cannot be frozen: {error}") from None
    held = cgroup.resident(Path(activation.payload))
    replace(parked, whole=True, held=held).save(activation.model)
    log.info("parked", extra=about(Event.MODEL_PARKED, phase="park"))


def wake(activation: Activation, watch: Stopwatch) -> bool:
    """The reverse of `park`, and the proof that it is one; False where it was not parked.

    NoPlace where others have its GPU: it is not touched then. An engine that has no memory for the
    rest of itself once it has begun to wake is lost: vLLM can neither go on from there nor sleep
    again.
    """
    parked = Parked.load(activation.model)
    if parked is None:
        return False
    if parked.whole and parked.vram:
        _require_place(activation, parked)
    # From here on it may hold its GPU again, however far it comes.
    replace(parked, whole=False).save(activation.model)
    with watch.part("thaw"):
        thaw(activation)
    if activation.devices:
        _return_to_gpu(activation, parked, watch)
    _compare_canary(activation, parked, watch)
    Parked.forget(activation.model)
    return True


def thaw(activation: Activation) -> None:
    """Let a parked container hear signals, as far as there is one."""
    if not activation.payload or Parked.load(activation.model) is None:
        return
    if activation.unit:
        signals.proceed(Path(activation.payload))
    else:
        freezer.thaw(Path(activation.payload))


def _hold_still(activation: Activation) -> None:
    if activation.unit:
        signals.stop(Path(activation.payload))
    else:
        freezer.freeze(Path(activation.payload))


def _ask_canary(activation: Activation, watch: Stopwatch) -> str:
    """Also of one without a GPU: its clocks went on while it was frozen, and time limits with them.

    What the server says; empty where it is not to be asked.
    """
    try:
        with watch.part("canary"):
            return canary.of_run(activation)
    except WrongAnswer as error:
        raise CannotPark(str(error)) from None


def _compare_canary(activation: Activation, parked: Parked, watch: Stopwatch) -> None:
    if not parked.canary:
        return
    try:
        with watch.part("canary"):
            answer = canary.of_run(activation)
    except WrongAnswer as error:
        raise CannotWake(f"it does not come back: {error}") from None
    if not canary.agree(parked.canary, answer):
        raise CannotWake(f"its canary says {answer or 'nothing'}, before it was {parked.canary}")


def _leave_gpu(activation: Activation, answer: str, watch: Stopwatch, trial: bool) -> Parked:
    """Let the engine let go of what it can, then take every process of this unit off its GPUs.

    `answer` is what its canary says by then.
    """
    from . import gpu, vram

    try:
        nap = vllm.nap(activation.port, activation.park_sleep)
        if trial and activation.park_sleep in vllm.TO_MEMORY:
            vram.check_trial(processes(activation))
    except (WrongAnswer, vram.TooMuch) as error:
        raise CannotPark(str(error)) from None
    # Before it lets go: for a dump it takes all of it again.
    parked = Parked(nap.back, answer, vram=vram.held(processes(activation)))
    parked.save(activation.model)
    try:
        with watch.part("sleep"):
            vllm.let_go(activation.port, nap)
        with watch.part("suspend"):
            driver = gpu.Driver()
            found = gpu.find(driver, processes(activation))
            check = vram.check_trial if trial else vram.check
            check(found)
            gpu.suspend(driver, list(found), STEP_LIMIT)
    except WrongAnswer as error:
        Parked.forget(activation.model)
        raise CannotPark(f"the engine does not let go: {error}") from None
    except (gpu.NoDriver, gpu.NotDone, vram.TooMuch) as error:
        _take_up(activation, nap)
        raise CannotPark(f"CUDA could not be suspended: {error}") from None
    log.info("%d processes are off the GPU%s", len(found), ", the engine sleeps" * bool(nap.out))
    return parked


def _return_to_gpu(activation: Activation, parked: Parked, watch: Stopwatch) -> None:
    from . import gpu, vram

    try:
        with watch.part("resume"):
            _resume(activation, parked)
        with watch.part("wake"):
            vllm.take_up(activation.port, parked.back)
    except (gpu.NoDriver, gpu.NotDone) as error:
        raise CannotWake(f"it does not come back: {error}") from None
    except WrongAnswer as error:
        who = vram.why_no_room(parked.vram, processes(activation))
        told = f"{error}: its GPU's memory is full: {who}" if who else str(error)
        raise CannotWake(f"it does not come back: {told}") from None


def _require_place(activation: Activation, parked: Parked) -> None:
    from . import vram

    why = vram.why_no_room_soon(parked.vram, processes(activation))
    if why:
        raise NoPlace(f"its GPU's memory is full: {why}")


def _resume(activation: Activation, parked: Parked) -> None:
    """NoPlace where the GPU has not the memory: then nothing of it is on there, as before."""
    from . import gpu, vram

    driver = gpu.Driver()
    try:
        gpu.resume(driver, list(gpu.find(driver, processes(activation))), STEP_LIMIT)
    except gpu.NotDone as error:
        if not (parked.whole and error.out_of_memory):
            raise
        try:
            _hold_still(activation)
        except freezer.NotFrozen:
            raise error from None
        parked.save(activation.model)
        who = vram.why_no_room(parked.vram, processes(activation))
        raise NoPlace(f"its GPU's memory is full: {who or error}") from None


def _put_back(activation: Activation) -> None:
    try:
        wake(activation, Stopwatch("resume"))
    except CannotWake as error:
        log.error("%s", error)


def _take_up(activation: Activation, nap: vllm.Nap) -> None:
    """gpu.suspend has put its own part back already."""
    try:
        vllm.take_up(activation.port, nap.back)
    except WrongAnswer as error:
        log.error("the engine does not wake up again: %s", error)
    else:
        Parked.forget(activation.model)


def processes(activation: Activation) -> list[int]:
    """Those that serve the model; the caller, which is in its unit, is none of them."""
    unit = Path(activation.payload) if activation.unit else cgroup.own_unit()
    return [pid for pid in cgroup.processes(unit) if pid != os.getpid()] if unit else []
