# SPDX-License-Identifier: MIT
"""What keeps a unit whose start has begun from its place on the GPU: a locked file in /run/llmux.

llmuxd holds the lock, and the unit's helper, which has loaded all that a start takes, waits for it.
Who lets it go on removes the file before the lock. A lock that is free while the file is there is
nobody's word: who had it is gone, llmuxd killed or at its end, and the unit must not go on, for
another model may have the place still.

Light, for handing.py.
"""

import fcntl
import os

from . import run_files

# The unit's status text meanwhile.
WAITING = "waiting for its place on the GPU"


class Hold:
    """llmuxd's side; OSError where it cannot be had, for there is one already, say."""

    def __init__(self, model: str):
        self._path = run_files.path(model, run_files.HOLD)
        # No helper may meet it without its lock.
        new = f"{self._path}.new"
        self._lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # In the place of another it would lift that.
            os.link(new, self._path)
        except OSError:
            os.close(self._lock)
            raise
        finally:
            os.unlink(new)

    def lift(self) -> None:
        """The unit goes on, also one whose helper comes only now; nothing where it was dropped."""
        if self._lock < 0:
            return
        try:
            _remove(self._path, self._lock)
        finally:
            self.drop()

    def drop(self) -> None:
        """The unit's helper ends it, as if llmuxd were gone; nothing where it was lifted."""
        # The number may be another file's by then.
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


class Waiting:
    """The helper's side; FileNotFoundError where nobody holds its unit back."""

    def __init__(self, model: str):
        path = run_files.path(model, run_files.HOLD)
        self._lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def wait(self, limit: float) -> bool:
        """Whether the start may go on; False where the hold is nobody's, or stays for `limit` s."""
        try:
            return self._locked_within(limit) and os.fstat(self._lock).st_nlink == 0
        finally:
            os.close(self._lock)

    def _locked_within(self, limit: float) -> bool:
        """A lock that is waited for knows no time limit: a signal ends the wait."""
        import signal

        before = signal.signal(signal.SIGALRM, _too_late)
        try:
            signal.setitimer(signal.ITIMER_REAL, limit)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        except _TooLate:
            return False
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        return True


def remains(model: str) -> bool:
    """Whether the unit was held back to its end: whoever lets it go on removes the hold before."""
    return os.path.exists(run_files.path(model, run_files.HOLD))


def forget(model: str) -> None:
    """The unit is down: of a hold that nobody has, nothing is left."""
    path = run_files.path(model, run_files.HOLD)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _remove(path, lock)
    except BlockingIOError:
        # llmuxd's.
        return
    finally:
        os.close(lock)


class _TooLate(Exception):
    pass


def _too_late(number: int, frame: object) -> None:
    raise _TooLate


def _remove(path: str, lock: int) -> None:
    """That very file: there may be another of its name by now."""
    try:
        if os.path.samestat(os.stat(path), os.fstat(lock)):
            os.unlink(path)
    except FileNotFoundError:
        return
