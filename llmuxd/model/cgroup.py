# SPDX-License-Identifier: MIT
"""The unit's own cgroup, as its helper sees it."""

import contextlib
import os
import signal
from pathlib import Path

from .process import run

ROOT = Path("/sys/fs/cgroup")
SHOW_TIMEOUT = 30.0

_spared: set[int] = set()


def spare(*pids: int) -> None:
    """These wait, in this unit, for what the caller is at: `kill_others` leaves them alone."""
    _spared.update(pids)


def kill_others() -> None:
    """Kill every process of this unit but the caller, and who waits for it.

    A podman that was given up on leaves conmon, the runtime and CRIU behind; nobody else ends
    them while the unit starts.
    """
    unit = own_unit()
    if unit is None:
        return
    for pid in processes(unit):
        if pid != os.getpid() and pid not in _spared:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def start_over() -> None:
    """Bring the caller back to where its unit's command begins, with nothing left below that.

    podman moves who calls it to a cgroup beside the container's, and makes the next container's
    below that one, where the kernel may not let CRIU restore it (`cg: Can't move 1 into …`: podman
    5.8, kernel 6.18). Where it cannot be, all stays as it is.
    """
    unit, own = own_unit(), of_process(os.getpid())
    if unit is None or own is None or own == unit:
        return
    for directory, _, _ in os.walk(unit, topdown=False):
        with contextlib.suppress(OSError):
            Path(directory).rmdir()
    with contextlib.suppress(OSError):
        control = unit / "cgroup.subtree_control"
        # While these are given on, no process can be in the unit's own.
        for name in control.read_text(encoding="ascii").split():
            control.write_text(f"-{name}", encoding="ascii")
        (unit / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        own.rmdir()


def processes(directory: Path) -> list[int]:
    """The processes of a cgroup and of those below it; none where there is no such cgroup."""
    pids = []
    # Python 3.11 says so where one goes while it is looked for.
    with contextlib.suppress(OSError):
        for procs in directory.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                pids += [int(pid) for pid in procs.read_text(encoding="ascii").split()]
    return pids


def family(first: int, directory: Path) -> list[int]:
    """The process, and who of the cgroup comes from it: not who was sent there (podman exec)."""
    parents = {pid: _parent(pid) for pid in processes(directory)}
    found = [first] if first in parents else []
    for process in found:
        found += [pid for pid, parent in parents.items() if parent == process]
    return found


def _parent(process: int) -> int:
    """0 where it is gone."""
    try:
        # proc_pid_stat(5): its name, in brackets, may have any other character.
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[1])
    except OSError:
        return 0


def resident(directory: Path) -> int:
    """The resident memory of all its processes, in bytes; what two of them share counts twice."""
    pages = 0
    for pid in processes(directory):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def of_unit(unit: str) -> Path | None:
    """The cgroup of a systemd unit, None where it does not run; CommandFailed without systemd."""
    show = ["systemctl", "show", "--property=ControlGroup", "--value", "--", unit]
    path = run(show, SHOW_TIMEOUT).strip()
    return named(path) if path else None


def named(path: str) -> Path:
    """The directory of a cgroup; its path may begin at the hierarchy's root or at the host's."""
    return Path(path) if Path(path).is_relative_to(ROOT) else ROOT / path.lstrip("/")


def of_process(pid: int) -> Path | None:
    """The cgroup of a process, in the hierarchy of version 2; None where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0":
            return ROOT / path.lstrip("/")
    return None


def gather(pid: int) -> None:
    """Bring all processes of the container whose first process is `pid` into its cgroup.

    With CRIU's manage-cgroups=ignore a restore leaves the first one's children in the cgroup of
    whoever called podman; the next dump freezes the container's cgroup only and fails on them
    (`Unseizable non-zombie`).
    """
    unit = own_unit()
    payload = of_process(pid)
    if unit is None or payload is None or payload == unit or unit not in payload.parents:
        return
    namespace = _pid_namespace(pid)
    for procs in unit.rglob("cgroup.procs"):
        if procs.parent == payload or payload in procs.parents:
            continue
        for other in procs.read_text(encoding="ascii").split():
            if _pid_namespace(int(other)) == namespace:
                with contextlib.suppress(ProcessLookupError):
                    (payload / "cgroup.procs").write_text(other, encoding="ascii")


def _pid_namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return f"gone {pid}"


def own_unit() -> Path | None:
    """The cgroup of the llmux-model@ unit that this process runs in; None outside of one."""
    own = of_process(os.getpid())
    # podman moves its callers to a subgroup of the unit's.
    for directory in [own, *own.parents] if own is not None else []:
        if directory.name.endswith(".service"):
            return directory
    return None
