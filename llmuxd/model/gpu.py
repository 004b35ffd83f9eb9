# SPDX-License-Identifier: MIT
"""CUDA suspend and resume of whole processes, by the checkpoint API of NVIDIA's driver.

A suspended process lives on with its host memory; what it had on the GPU is host memory as well
until it is resumed. Layouts and states are those of cuda.h in CUDA 13.1. Drivers from 570 on
have the API, those from 580 on the GPU map.

The driver works through a thread of the process that it acts on, and even a query of a stopped
process waits until it goes on: suspend before a freeze, thaw before a resume. Little is imported
here, since a dump runs cuda_checkpoint.py dozens of times.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum, StrEnum

LIBRARY = "libcuda.so.1"

# Seconds. A query took 2.7 s on one host (nvcf issue 263).
QUERY_LIMIT = 30.0
# A lock that runs out of time is told so by the driver, which then leaves the process running.
_GRACE = 1.0

# CUDA_ERROR_NOT_INITIALIZED is what a process without CUDA got from driver 580.159 on an H100,
# OPERATING_SYSTEM a pid that is no process; cuda.h lists NOT_SUPPORTED too.
_NOT_CUDA = (3, 304, 801)
# CUDA_ERROR_OUT_OF_MEMORY.
_FULL = 2


class NoDriver(Exception):
    """This host has no libcuda, or one without the checkpoint API."""


class CudaError(Exception):
    """The driver refused a call. `code` and `name` are a CUresult's."""

    def __init__(self, what: str, pid: int, code: int, name: str, words: str):
        super().__init__(f"{what} of process {pid}: {name} ({code}): {words}")
        self.code = code
        self.name = name


class TimedOut(Exception):
    """A call did not return. It cannot be called off: the process may change its state yet."""

    def __init__(self, what: str, pid: int, limit: float):
        super().__init__(f"{what} of process {pid}: it did not end within {limit:g} s")


class NotDone(Exception):
    """An action failed. `errors` has a CudaError or a TimedOut for each process that it failed on.

    `left` has what kept processes from being put back to the state that they were in.
    """

    def __init__(self, errors: dict[int, Exception], left: dict[int, Exception] | None = None):
        told = [str(error) for error in errors.values()]
        told += [f"not put back: {error}" for error in (left or {}).values()]
        super().__init__("; ".join(told))
        self.errors = errors
        self.left = left or {}

    @property
    def out_of_memory(self) -> bool:
        """Whether a GPU was full, and all processes are as they were."""
        full = (each for each in self.errors.values() if isinstance(each, CudaError))
        return not self.timed_out and not self.left and any(e.code == _FULL for e in full)

    @property
    def timed_out(self) -> bool:
        """Whether a call is still under way in this process."""
        errors = [*self.errors.values(), *self.left.values()]
        return any(isinstance(error, TimedOut) for error in errors)


class State(IntEnum):
    """CUprocessState: how far a process is from using its GPUs."""

    RUNNING = 0
    LOCKED = 1
    CHECKPOINTED = 2
    FAILED = 3

    @classmethod
    def _missing_(cls, value: object) -> "State":
        """A state that a newer driver may have is nothing to go on from."""
        return cls.FAILED

    def __str__(self) -> str:
        return self.name.lower()


class Action(StrEnum):
    """One step from state to state."""

    LOCK = "lock"
    CHECKPOINT = "checkpoint"
    RESTORE = "restore"
    UNLOCK = "unlock"


_STEPS = {
    Action.LOCK: (State.RUNNING, State.LOCKED),
    Action.CHECKPOINT: (State.LOCKED, State.CHECKPOINTED),
    Action.RESTORE: (State.CHECKPOINTED, State.LOCKED),
    Action.UNLOCK: (State.LOCKED, State.RUNNING),
}

# The UUIDs, 16 bytes each, of a GPU that was checkpointed and of the one to restore it on.
Pair = tuple[bytes, bytes]


class _LockArgs(ctypes.Structure):
    """CUcheckpointLockArgs; 0 ms would be no limit."""

    _fields_ = (("timeoutMs", ctypes.c_uint), ("reserved", ctypes.c_ubyte * 60))


class _NoArgs(ctypes.Structure):
    """CUcheckpointCheckpointArgs and CUcheckpointUnlockArgs."""

    _fields_ = (("reserved", ctypes.c_ubyte * 64),)


class _GpuPair(ctypes.Structure):
    """CUcheckpointGpuPair."""

    _fields_ = (("oldUuid", ctypes.c_ubyte * 16), ("newUuid", ctypes.c_ubyte * 16))


class _RestoreArgs(ctypes.Structure):
    """CUcheckpointRestoreArgs; drivers before 580 have zeroes in place of the pairs."""

    _fields_ = (
        ("gpuPairs", ctypes.POINTER(_GpuPair)),
        ("gpuPairsCount", ctypes.c_uint),
        ("reserved", ctypes.c_ubyte * 52),
    )


class Driver:
    """The calls, each on one process. They block, without Python's lock, and raise CudaError."""

    def __init__(self, library: str | None = None):
        """NoDriver where it cannot be loaded or is too old."""
        try:
            self._library = ctypes.CDLL(library or LIBRARY)
        except OSError as error:
            raise NoDriver(f"no NVIDIA driver: {error}") from None
        if not hasattr(self._library, "cuCheckpointProcessLock"):
            raise NoDriver("the NVIDIA driver has no checkpoint API, 570 and newer have it")
        self._initializing = threading.Lock()
        self._initialized = False

    def initialize(self, pid: int) -> None:
        """What the first restore does first; `pid` is whom it is for, 0 is nobody yet.

        It wants cuInit where persistence mode is off, as cuda.h says of cuCheckpointProcessRestore.
        That takes 0.2 s, and 0.5 s more where no process has the GPU open; the rest does not.
        """
        with self._initializing:
            if not self._initialized:
                self._check("initialization for the restore", pid, self._library.cuInit(0))
                self._initialized = True

    def state(self, pid: int) -> State:
        """The state of a process; a thread's id is as good as its process's."""
        value = ctypes.c_int()
        self._call("state", "cuCheckpointProcessGetState", pid, value)
        return State(value.value)

    def restore_tid(self, pid: int) -> int:
        """The thread that must run while the driver acts on a process."""
        value = ctypes.c_int()
        self._call("restore thread", "cuCheckpointProcessGetRestoreThreadId", pid, value)
        return value.value

    def lock(self, pid: int, limit: float) -> None:
        """Hold a running process's next CUDA calls; `limit` is in seconds."""
        arguments = _LockArgs(timeoutMs=max(1, round(limit * 1000)))
        self._call("lock", "cuCheckpointProcessLock", pid, arguments)

    def checkpoint(self, pid: int) -> None:
        """Bring what a locked process has on its GPUs into host memory, and free them."""
        self._call("checkpoint", "cuCheckpointProcessCheckpoint", pid, _NoArgs())

    def restore(self, pid: int, pairs: Sequence[Pair] = ()) -> None:
        """Bring it back. `pairs` must have every GPU of the process, or none."""
        self.initialize(pid)
        gpus = (_GpuPair * len(pairs))()
        for gpu, (old, new) in zip(gpus, pairs, strict=True):
            gpu.oldUuid[:] = old
            gpu.newUuid[:] = new
        arguments = _RestoreArgs(gpuPairsCount=len(pairs))
        if pairs:
            arguments.gpuPairs = gpus
        self._call("restore", "cuCheckpointProcessRestore", pid, arguments)

    def unlock(self, pid: int) -> None:
        """Let a locked process go on."""
        self._call("unlock", "cuCheckpointProcessUnlock", pid, _NoArgs())

    def perform(self, action: Action, pid: int, limit: float, pairs: Sequence[Pair] = ()) -> State:
        """One action; the state that it led to. `limit` is for a lock, `pairs` for a restore."""
        match action:
            case Action.LOCK:
                self.lock(pid, limit)
            case Action.CHECKPOINT:
                self.checkpoint(pid)
            case Action.RESTORE:
                self.restore(pid, pairs)
            case Action.UNLOCK:
                self.unlock(pid)
        return _STEPS[action][1]

    def _call(
        self, what: str, function: str, pid: int, argument: ctypes.c_int | ctypes.Structure
    ) -> None:
        self._check(what, pid, self._library[function](pid, ctypes.byref(argument)))

    def _check(self, what: str, pid: int, code: int) -> None:
        if code:
            name = self._text("cuGetErrorName", code) or "an unknown error"
            raise CudaError(what, pid, code, name, self._text("cuGetErrorString", code))

    def _text(self, function: str, code: int) -> str:
        text = ctypes.c_char_p()
        self._library[function](code, ctypes.byref(text))
        return (text.value or b"").decode(errors="replace")


def find(driver: Driver, pids: Iterable[int], limit: float = QUERY_LIMIT) -> dict[int, State]:
    """Those of `pids` that use CUDA, and their states; NotDone where it cannot be told."""
    values, errors = _ask("state", driver.state, pids, limit)
    for pid, error in list(errors.items()):
        if isinstance(error, CudaError) and error.code in _NOT_CUDA:
            del errors[pid]
    if errors:
        raise NotDone(errors)
    return {pid: State(value) for pid, value in values.items()}


def states(driver: Driver, pids: Iterable[int], limit: float = QUERY_LIMIT) -> dict[int, State]:
    """The state of each of `pids`; NotDone where one does not use CUDA."""
    values = _ask_all("state", driver.state, pids, limit)
    return {pid: State(value) for pid, value in values.items()}


def restore_tids(driver: Driver, pids: Iterable[int], limit: float = QUERY_LIMIT) -> dict[int, int]:
    """The restore thread of each of `pids`; NotDone where one does not use CUDA."""
    return _ask_all("restore thread", driver.restore_tid, pids, limit)


def act(
    driver: Driver,
    action: Action,
    pids: Iterable[int],
    limit: float,
    pairs: Sequence[Pair] = (),
) -> State:
    """One action on all of `pids` at once, within `limit` seconds; the state that it led to.

    NotDone where it failed on one; the others have then been put back, within `limit` again.
    """
    before, after = _STEPS[action]
    done, errors = _perform(driver, action, pids, limit, pairs)
    if errors:
        raise NotDone(errors, _put_back(driver, dict.fromkeys(done, before), limit))
    return after


def suspend(driver: Driver, pids: Iterable[int], limit: float) -> None:
    """Take all of `pids` off their GPUs, each step within `limit` seconds; who is off stays off.

    None is checkpointed before all are locked. NotDone where one cannot be: all the others have
    then been put back to the state that they were in.
    """
    _through(driver, pids, limit, (Action.LOCK, Action.CHECKPOINT))


def resume(driver: Driver, pids: Iterable[int], limit: float, pairs: Sequence[Pair] = ()) -> None:
    """Bring all of `pids` back and let them run, as `suspend` does the reverse."""
    _through(driver, pids, limit, (Action.RESTORE, Action.UNLOCK), pairs)


def _through(
    driver: Driver,
    pids: Iterable[int],
    limit: float,
    actions: Sequence[Action],
    pairs: Sequence[Pair] = (),
) -> None:
    """Bring each process to where the last action ends, through those that it has yet to do."""
    before = states(driver, pids, min(limit, QUERY_LIMIT))
    now = dict(before)
    for action in actions:
        # A failed process goes too: the driver has the words for why it cannot.
        due = [pid for pid, state in now.items() if state in (_STEPS[action][0], State.FAILED)]
        done, errors = _perform(driver, action, due, limit, pairs)
        now |= done
        if errors:
            lost = [pid for pid, error in errors.items() if isinstance(error, TimedOut)]
            known = {pid: state for pid, state in before.items() if pid not in lost}
            raise NotDone(errors, _put_back(driver, known, limit))


def _perform(
    driver: Driver,
    action: Action,
    pids: Iterable[int],
    limit: float,
    pairs: Sequence[Pair] = (),
) -> tuple[dict[int, State], dict[int, Exception]]:
    """The states that `action` led to, and what failed."""
    grace = _GRACE if action is Action.LOCK else 0.0

    def call(pid: int) -> int:
        return driver.perform(action, pid, limit, pairs)

    values, errors = _ask(action.value, call, pids, limit + grace)
    return {pid: State(value) for pid, value in values.items()}, errors


def _put_back(driver: Driver, before: dict[int, State], limit: float) -> dict[int, Exception]:
    """Bring each process to the state that it was in; what kept some from it."""

    def call(pid: int) -> int:
        # Asked for, not remembered: an action that failed may have been done all the same.
        now, goal = driver.state(pid), before[pid]
        while now not in (goal, State.FAILED):
            now = driver.perform(_towards(now, goal), pid, limit)
        return now

    return _ask("return", call, before, limit)[1]


def _towards(now: State, goal: State) -> Action:
    """The next action on the way."""
    for action, (source, target) in _STEPS.items():
        if source is now and (target > now) is (goal > now):
            return action
    raise AssertionError(f"no way from {now} to {goal}")


def _ask_all(
    what: str, call: Callable[[int], int], pids: Iterable[int], limit: float
) -> dict[int, int]:
    values, errors = _ask(what, call, pids, limit)
    if errors:
        raise NotDone(errors)
    return values


def _ask(
    what: str, call: Callable[[int], int], pids: Iterable[int], limit: float
) -> tuple[dict[int, int], dict[int, Exception]]:
    """What `call` says of each process, all asked at once, and the errors of the others.

    Two checkpoints of 4 GB took 2.4 s at once and 5.7 s one after the other (H100, 580.159).
    """
    end = time.monotonic() + limit
    threads = [_Call(call, pid) for pid in pids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    values: dict[int, int] = {}
    errors: dict[int, Exception] = {}
    for thread in threads:
        if thread.is_alive():
            errors[thread.pid] = TimedOut(what, thread.pid, limit)
        elif isinstance(thread.error, CudaError):
            errors[thread.pid] = thread.error
        elif thread.error is not None:
            raise thread.error
        else:
            values[thread.pid] = thread.value
    return values, errors


class _Call(threading.Thread):
    """One call. A daemon, because a call into the driver can be abandoned but not ended."""

    def __init__(self, call: Callable[[int], int], pid: int):
        super().__init__(daemon=True)
        self._ask = call
        self.pid = pid
        self.value = 0
        self.error: Exception | None = None

    def run(self) -> None:
        """The thread."""
        try:
            self.value = self._ask(self.pid)
        except Exception as error:
            self.error = error
