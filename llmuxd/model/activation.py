# SPDX-License-Identifier: MIT
"""What is true of one run of a model's unit: where it listens, how it came up, how it is to end.

Lives in /run/llmux. The helper writes it before it reports READY, so a unit that is active
always has one; llmuxd reads it.
"""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from .. import files, names, run_files
from ..config import CANARY_PROMPT, CONTAINER_FORM, Question, Sleep, Snapshot
from .identity import Identity, of_json


class Way(StrEnum):
    """How a model came to serve."""

    COLD = "cold"
    RESTORE = "restore"
    RESUME = "resume"


class Leave(StrEnum):
    """What `systemctl stop` of a model's unit does with the model."""

    CHECKPOINT = "checkpoint"
    END = "end"  # nothing is written; an image that it has from before is kept
    STOP = "stop"


@dataclass(frozen=True)
class LeaveOrder:
    """How the stop that comes is to end the model; `wanted` are the models that requests wait for.

    Theirs are the images that must not make room for this one's. `sleep` is to be let go of in an
    image that is taken to be measured (tuning.py); None: it is to be a lasting one, as usual.
    """

    leave: Leave = Leave.CHECKPOINT
    wanted: tuple[str, ...] = ()
    sleep: Sleep | None = None


@dataclass(frozen=True)
class ParkOrder:
    """The reload that comes is to park the model; `sleep` as in LeaveOrder."""

    sleep: Sleep | None = None


@dataclass(frozen=True)
class Activation:
    """One run. `port` is on 127.0.0.1; `seconds` is from ExecStart's begin to health, or, since it
    was parked, what its coming back took.

    `payload` is the directory of the container's own cgroup; empty where it has none. `unit` is the
    other unit that serves the model (mirroring.py), whose cgroup `payload` is then.
    `container_form` is that of the llmuxd that made the container, empty where it did not say. From
    `definition` to `devices` it is what the configuration said when it was started: the file
    may say something else, or be gone, by the time it is stopped. `identity` is that of an image
    of this run, for an engine that may let go of something; None of any other.
    """

    model: str
    port: int
    definition: str
    checkpoint: bool
    gpus: tuple[int, ...]
    way: Way
    seconds: float
    why_cold: str = ""
    snapshot: Snapshot = Snapshot.LIVE
    checkpoint_dir: str = ""
    canary: bool = False
    canary_prompt: str = CANARY_PROMPT
    question: Question | None = None
    devices: tuple[str, ...] = ()
    image_sleep: Sleep = Sleep.OFF
    park_sleep: Sleep = Sleep.OFF
    payload: str = ""
    unit: str = ""
    container_form: str = str(CONTAINER_FORM)
    identity: Identity | None = None

    def save(self) -> None:
        """Publish it for llmuxd."""
        files.write_json(_path(self.model), asdict(self))

    @classmethod
    def load(cls, model: str) -> "Activation | None":
        """The current run of `model`; None where its unit is not up."""
        raw = files.read_json(_path(model))
        if raw is None:
            return None
        try:
            return cls(
                model=str(raw["model"]),
                port=int(str(raw["port"])),
                definition=str(raw["definition"]),
                checkpoint=bool(raw["checkpoint"]),
                gpus=tuple(int(gpu) for gpu in files.texts(raw["gpus"])),
                way=Way(str(raw["way"])),
                seconds=float(str(raw["seconds"])),
                why_cold=str(raw.get("why_cold", "")),
                snapshot=Snapshot(str(raw.get("snapshot", Snapshot.LIVE))),
                checkpoint_dir=str(raw.get("checkpoint_dir", "")),
                canary=bool(raw.get("canary")),
                canary_prompt=str(raw.get("canary_prompt", CANARY_PROMPT)),
                question=Question.from_json(raw.get("question")),
                devices=files.texts(raw.get("devices")),
                image_sleep=Sleep(str(raw.get("image_sleep", Sleep.OFF))),
                park_sleep=Sleep(str(raw.get("park_sleep", Sleep.OFF))),
                payload=str(raw.get("payload", "")),
                unit=str(raw.get("unit", "")),
                container_form=str(raw.get("container_form", "")),
                identity=of_json(raw.get("identity")),
            )
        except (KeyError, ValueError):
            return None

    @staticmethod
    def forget(model: str) -> None:
        """The unit is down."""
        for path in (_path(model), _place_path(model)):
            path.unlink(missing_ok=True)


def note_place(model: str, gpus: Sequence[int]) -> None:
    """The unit begins to start the model on these GPUs; known until all is cleaned up again."""
    files.write_json(_place_path(model), {"gpus": list(gpus)})


def noted_place(model: str) -> tuple[int, ...] | None:
    """Where the unit of a model is that is not down; None where it has not told.

    Of one that is down: its clean-up did not come to its end.
    """
    gpus = (files.read_json(_place_path(model)) or {}).get("gpus")
    try:
        return tuple(int(gpu) for gpu in gpus) if isinstance(gpus, list) else None
    except ValueError:
        return None


def order_leave(
    model: str, leave: Leave, wanted: Sequence[str] = (), sleep: Sleep | None = None
) -> None:
    """Say how the next stop of the unit is to end it. Without an order it is a checkpoint."""
    files.write_json(_order_path(model), asdict(LeaveOrder(leave, tuple(wanted), sleep)))


def forget_leave(model: str) -> None:
    """The stop was not to be: the next one is not bound by its order."""
    _order_path(model).unlink(missing_ok=True)


def take_leave_order(model: str) -> LeaveOrder:
    """The order for the stop that has ended; an order holds once."""
    order = leave_order(model)
    _order_path(model).unlink(missing_ok=True)
    return order


def leave_order(model: str) -> LeaveOrder:
    """The order for the stop that has begun, and may have to begin once more (handing.py)."""
    raw = files.read_json(_order_path(model)) or {}
    wish = str(raw.get("leave"))
    leave = Leave(wish) if wish in Leave.__members__.values() else Leave.CHECKPOINT
    return LeaveOrder(leave, files.texts(raw.get("wanted")), _sleep(raw.get("sleep")))


def conmon_pidfile(model: str) -> Path:
    """Where conmon writes its pid; the path is part of the container, so it must not change."""
    return Path(run_files.path(model, run_files.CONMON))


def stopping_mark(model: str) -> Path:
    """Exists while an ordered stop runs: tells it from a server that died by itself."""
    return Path(run_files.path(model, run_files.STOPPING))


def order_park(model: str, sleep: Sleep | None = None) -> None:
    """Say that the next reload of the unit is to park the model."""
    files.write_json(_park_order_path(model), asdict(ParkOrder(sleep)))


def take_park_order(model: str) -> ParkOrder | None:
    """What the reload that has begun is to do; None: no park. An order holds once."""
    path = _park_order_path(model)
    ordered, raw = path.exists(), files.read_json(path) or {}
    path.unlink(missing_ok=True)
    return ParkOrder(_sleep(raw.get("sleep"))) if ordered else None


# The unit's status text from when its GPUs are free until it is down: what is left to do is files
# and mounts, and nobody has to wait for it. llmuxd reads it.
RELEASED = "off its GPUs, tidying up"
# The same once the model is parked.
PARKED = "parked"


def socket_path(model: str) -> Path:
    """Where the helper that stays in the unit listens (resident.py)."""
    return Path(run_files.path(model, run_files.SOCKET))


class Busy(Exception):
    """Somebody else moves the model just now."""


@contextlib.contextmanager
def one_at_a_time(model: str, *, wait: bool = True) -> Iterator[None]:
    """Hold off what else moves the model: a stop by hand in the middle of a park.

    Without `wait`, Busy where it is moved already.
    """
    path = files.runtime_root() / f"{names.slug(model)}.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{model} is on its way") from None
        yield


def is_moved(model: str) -> bool:
    """Whether somebody moves the model just now, or may do so; leaves no file behind.

    Good for the event loop: no lock and, in /run, no disk is waited for, and it takes 25 µs. Who
    wants the lock in these and does not wait for it either (`Busy`) tries again another time.
    """
    path = files.runtime_root() / f"{names.slug(model)}.lock"
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        # Somebody has it; or it cannot be known, as when too many files are open.
        return True
    return False


def has_parked(model: str) -> bool:
    """Whether the model was parked, or half-way, and is not back yet."""
    return parked_path(model).exists()


def is_parked(model: str) -> bool:
    """Whether the model is parked: its GPU is free and its container frozen."""
    raw = files.read_json(parked_path(model))
    return raw is not None and raw.get("whole") is True


def parked_memory(model: str) -> int:
    """What a parked model takes of the host's memory, in bytes; 0 of any other."""
    raw = files.read_json(parked_path(model))
    held = raw.get("held") if raw is not None and raw.get("whole") is True else None
    return held if isinstance(held, int) else 0


def parked_vram(model: str) -> dict[int, int]:
    """What a parked model took of its GPUs, in bytes, by their numbers, as far as it is known."""
    sizes = (files.read_json(parked_path(model)) or {}).get("vram")
    if not isinstance(sizes, dict):
        return {}
    return {int(number): size for number, size in sizes.items() if isinstance(size, int)}


def parked_path(model: str) -> Path:
    """What parking.py has to undo."""
    return Path(run_files.path(model, run_files.PARKED))


def mark_kept(model: str) -> None:
    """The ordered stop left a container with a good image: nothing is to be cleaned but that."""
    stopping_mark(model).write_bytes(run_files.KEPT)


def was_kept(model: str) -> bool:
    """Whether the stop said so."""
    mark = stopping_mark(model)
    return mark.exists() and mark.read_bytes() == run_files.KEPT


def _sleep(raw: object) -> Sleep | None:
    return Sleep(raw) if isinstance(raw, str) and raw in Sleep.__members__.values() else None


def _path(model: str) -> Path:
    return Path(run_files.path(model, run_files.ACTIVATION))


def _place_path(model: str) -> Path:
    return Path(run_files.path(model, run_files.PLACE))


def _order_path(model: str) -> Path:
    return Path(run_files.path(model, run_files.LEAVE_ORDER))


def _park_order_path(model: str) -> Path:
    return Path(run_files.path(model, run_files.PARK_ORDER))
