# SPDX-License-Identifier: MIT
"""Boots a root file system where there is no systemd-nspawn, by util-linux alone.

A mount, PID, network, IPC, UTS and cgroup namespace, pivot_root, and systemd as PID 1. A plain
chroot would not do: CRIU says `The root task has another root than mntns`.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.machine import cgroup, host
from tests.machine.errors import MachineError

NAME = "gpu"
RUN = Path("/run/llmux-gpu")
_BOOT_SECONDS = 60.0
_POWEROFF_SECONDS = 30.0

_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}

# $1: root, $2: here:there[:ro] of each bind, a line each; then the device nodes of the host.
# Its first act is to be moved to the cgroup that the cgroup namespace begins at: unshare itself
# stays outside, since systemd cannot hand controllers on while a process is in its own root.
_ENTER = 'echo 0 > "$0/cgroup.procs"; exec unshare --cgroup sh -euc "$@"'
_SCRIPT = r"""
root=$1; binds=$2; shift 2
mount --bind "$root" "$root"
cd "$root"
mount -t proc -o nosuid,nodev,noexec proc proc
# Not writable before systemd is up: it would raise the host's fs.nr_open.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755,nosuid tmpfs dev
mkdir dev/pts dev/shm dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for number in 0 1 2; do
    name=$(echo stdin stdout stderr | cut -d ' ' -f $((number + 1)))
    ln -s "/proc/self/fd/$number" "dev/$name"
done
for node in null zero full random urandom tty fuse "$@"; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
printf '%s\n' "$binds" | while IFS=: read -r here there how; do
    [ -n "$here" ] || continue
    mkdir -p "$root$here"
    mount --bind "$there" "$root$here"
    [ -z "$how" ] || mount -o "remount,bind,$how" "$root$here"
done
mkdir -p mnt/host
pivot_root . mnt/host
cd /
umount --lazy /mnt/host
exec env -i container=other PATH=/usr/sbin:/usr/bin \
    /usr/lib/systemd/systemd systemd.show_status=error
"""


class Booted:
    """The machine, once it is up."""

    def __init__(self, leader: int):
        self.leader = leader

    def command(self, argv: Sequence[str]) -> list[str]:
        """What runs argv in the machine when it is run on the host."""
        procs = cgroup.visitors(NAME) / "cgroup.procs"
        return [
            *("sh", "-c", 'echo $$ >"$0" && exec "$@"', str(procs)),
            *("nsenter", f"--target={self.leader}", "--all", "--root", "--wd"),
            *("env", "-i", *(f"{key}={value}" for key, value in _ENVIRONMENT.items())),
            *argv,
        ]

    def shell(self, script: str, timeout: float = 120.0) -> str:
        """Run a script of ours in the machine; what it printed."""
        done = subprocess.run(
            self.command(["bash", "-euc", script]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            words = done.stdout.splitlines()[-25:]
            raise MachineError("\n    ".join(["this failed in the machine:", *words]))
        return done.stdout

    def poweroff(self) -> None:
        """End it as its user would; what resists is killed."""
        with contextlib.suppress(MachineError, subprocess.TimeoutExpired):
            self.shell("systemctl poweroff", timeout=_POWEROFF_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self.leader)
            _wait_ended(pidfd, self.leader)
        cgroup.remove(NAME)
        (RUN / "leader").unlink(missing_ok=True)


def running() -> Booted | None:
    """The machine that an earlier call booted, if it is still up."""
    try:
        leader = int((RUN / "leader").read_text())
        os.kill(leader, 0)
    except (OSError, ValueError):
        return None
    return Booted(leader)


def boot(root: Path, binds: Mapping[str, tuple[Path, str]], nodes: Sequence[str]) -> Booted:
    """Boot `root`; `binds`: path in it -> (path here, "ro" or ""); `nodes`: names in /dev.

    It outlives this process.
    """
    RUN.mkdir(parents=True, exist_ok=True)
    payload = _cgroup()
    lines = "\n".join(
        f"{here}:{there}{f':{how}' if how else ''}" for here, (there, how) in binds.items()
    )
    with (RUN / "console.log").open("wb") as console:
        started = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private", "--uts", "--ipc", "--net"),
                *("--pid", "--fork", "sh", "-euc", _ENTER, str(payload)),
                *(_SCRIPT, "boot", str(root), lines, *nodes),
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    booted = Booted(_leader(started))
    _wait_up(booted, started)
    (RUN / "leader").write_text(str(booted.leader))
    booted.shell("mount -o remount,bind,rw /proc/sys")
    return booted


def _cgroup() -> Path:
    """The cgroup that the machine sees as its root, with all controllers that there are."""
    group = cgroup.path(NAME)
    payload = group / "payload"
    payload.mkdir(parents=True, exist_ok=True)
    if not host.hybrid_cgroups():
        wanted = " ".join(f"+{name}" for name in (group / "cgroup.controllers").read_text().split())
        (group / "cgroup.subtree_control").write_text(wanted)
    return payload


def _leader(started: subprocess.Popen[bytes]) -> int:
    """The host's pid of the machine's PID 1: unshare's child."""
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    end = time.monotonic() + _BOOT_SECONDS
    while started.poll() is None and time.monotonic() < end:
        found = children.read_text().split()
        if found:
            return int(found[0])
        time.sleep(0.01)
    raise MachineError(f"the machine did not start: {_console()}")


def _wait_up(booted: Booted, started: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _BOOT_SECONDS
    while started.poll() is None and time.monotonic() < end:
        # Its private socket is the first sign that systemd can be asked.
        if Path(f"/proc/{booted.leader}/root/run/systemd/private").exists():
            state = subprocess.run(
                booted.command(["systemctl", "is-system-running", "--wait"]),
                capture_output=True,
                text=True,
                timeout=_BOOT_SECONDS,
                check=False,
            ).stdout.strip()
            if state in ("running", "degraded"):
                return
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(booted.leader, signal.SIGKILL)
    raise MachineError(f"the machine did not come up: {_console()}")


def _wait_ended(pidfd: int, pid: int) -> None:
    end = time.monotonic() + _POWEROFF_SECONDS
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > end:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        time.sleep(0.05)
    os.close(pidfd)


def _console() -> str:
    return "\n    ".join((RUN / "console.log").read_text(errors="replace").splitlines()[-15:])
