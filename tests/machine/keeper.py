# SPDX-License-Identifier: MIT
"""The process that a machine lives and dies with: python3 -m tests.machine.keeper NAME.

It runs in a mount namespace of its own, so that the machine's root is mounted nowhere on the
host, and cleans up however the machine ends. It talks with whoever boots the machine in lines
of JSON:

    in   the plan, then "keep" when the machine is to outlive its boot; the end of the input
         before that ends the machine
    out  {"ready": leader's pid}, {"kept": true}, or {"failed": "why"} and the end
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from . import cache, cgroup, process
from .errors import MachineError

RUN = Path("/run/llmux-machine")


@dataclass(frozen=True)
class Plan:
    lower: str  # the read-only root file system
    state: str  # a directory on a real disk: podman's overlay can't be on ours
    binds: dict[str, str]  # read-only: path in the machine -> path on the host
    models: list[str]  # directories of the host that show up in the machine's /srv/models
    files: dict[str, str]  # path in the machine -> text

    def dump(self) -> str:
        return json.dumps(asdict(self))


def run_directory(name: str) -> Path:
    return RUN / name


def state_directory(name: str) -> Path:
    return Path(os.environ.get("LLMUX_MACHINE_STATE", "/var/lib/llmux-machine")) / name


def alive(name: str) -> bool:
    """Whether the machine has a keeper: it holds a lock as long as it lives."""
    try:
        with (run_directory(name) / "alive").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def sweep(name: str) -> None:
    """Removes what a machine leaves behind; only for one that is not alive."""
    cgroup.remove(name)
    for directory in (state_directory(name), run_directory(name)):
        if directory.exists():
            cache.remove(directory)
        with contextlib.suppress(OSError):  # other machines have theirs beside it
            directory.parent.rmdir()


def _make(directory: Path) -> None:
    """Makes one of a machine's; the last one's end may remove its parent in between."""
    while not directory.is_dir():
        with contextlib.suppress(FileNotFoundError):
            directory.mkdir(parents=True)


class Keeper:
    def __init__(self, name: str, plan: Plan) -> None:
        self.name = name
        self.plan = plan
        self.run = run_directory(name)
        self.state = Path(plan.state)
        self.leader = 0
        self.ready = False

    def main(self) -> None:
        _make(self.run)
        with (self.run / "alive").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (self.run / "keeper").write_text(str(os.getpid()))
            try:
                self._mount()
                self._boot()
            finally:
                self._unmount()
                sweep(self.name)

    def _mount(self) -> None:
        _make(self.state)
        for name in ("upper", "work", "containers", "models"):
            (self.state / name).mkdir()
        self._link_models()
        root = self.run / "root"
        root.mkdir()
        layers = f"lowerdir={self.plan.lower},upperdir={self.state}/upper,workdir={self.state}/work"
        process.run(
            ["mount", "-t", "overlay", "-o", layers, "overlay", root],
            hint="is the disk below an overlay itself? set LLMUX_MACHINE_STATE to a place on ext4",
        )
        for name, text in self.plan.files.items():
            file = root / name.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def _link_models(self) -> None:
        """All models in one directory: of a volume with a mount below it, CRIU dumps nothing."""
        for model in map(Path, self.plan.models):
            there = self.state / "models" / model.name
            try:
                shutil.copytree(model, there, copy_function=os.link)
            except shutil.Error:  # the cache is on another disk
                shutil.copytree(model, there, dirs_exist_ok=True)

    def _unmount(self) -> None:
        cgroup.leave()
        root = self.run / "root"
        if root.is_mount():
            process.run(["umount", root])

    def _boot(self) -> None:
        cgroup.enter(self.name)
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(str(self.run / "notify"))
        with (self.run / "console.log").open("wb") as console:
            machine = self._nspawn(console)
        signal.signal(signal.SIGTERM, lambda *_: machine.terminate())
        try:
            self._watch(machine, notify)
        finally:
            machine.kill()
            machine.wait()

    def _nspawn(self, console: IO[bytes]) -> subprocess.Popen[bytes]:
        binds = [f"--bind-ro={there}:{here}" for here, there in self.plan.binds.items()]
        environment = {
            "PATH": os.environ["PATH"],
            "NOTIFY_SOCKET": str(self.run / "notify"),
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            # Not "yes": the machine's systemd would raise the host's fs.nr_open when it starts.
            # CRIU needs more, and gets it when systemd is done with that: see Machine.
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
            # Its filter would refuse what podman and CRIU call.
            "SYSTEMD_SECCOMP": "0",
        }
        return subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "systemd-nspawn", "--quiet"),
                *("--register=no", "--keep-unit", f"--machine=llmux-{self.name}"),
                *(f"--directory={self.run}/root", "--boot", "--notify-ready=yes"),
                *("--capability=all", "--private-network", "--console=read-only"),
                *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
                "--setenv=SYSTEMD_COLORS=0",
                f"--bind={self.state}/containers:/var/lib/containers",
                f"--bind-ro={self.state}/models:/srv/models",
                *binds,
                "systemd.show_status=error",
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env=environment,
        )

    def _watch(self, machine: subprocess.Popen[bytes], notify: socket.socket) -> None:
        ended = os.pidfd_open(machine.pid)
        poll = select.poll()
        for source in (ended, notify, sys.stdin):
            poll.register(source, select.POLLIN)
        while True:
            for source, _ in poll.poll():
                if source == ended:
                    self._over()
                    return
                if source == notify.fileno():
                    self._notified(notify.recv(4096).decode())
                if source == sys.stdin.fileno():
                    if sys.stdin.readline() != "keep\n":
                        return
                    poll.unregister(sys.stdin)
                    self._keep()

    def _notified(self, message: str) -> None:
        for line in message.splitlines():
            key, _, value = line.partition("=")
            if key == "X_NSPAWN_LEADER_PID":
                self.leader = int(value)
            # Systemd says so again after each of its reloads.
            if line == "READY=1" and not self.ready:
                self.ready = True
                _tell(ready=self.leader)

    def _keep(self) -> None:
        (self.run / "leader").write_text(str(self.leader))
        _tell(kept=True)
        # Whoever booted the machine goes away now; nothing is to be told to anybody from here on.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())

    def _over(self) -> None:
        if not (self.run / "leader").exists():
            said = (self.run / "console.log").read_text(errors="replace").splitlines()[-15:]
            raise MachineError("\n    ".join(["the machine ended before it was ready", *said]))


def _tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    try:
        Keeper(sys.argv[1], Plan(**json.loads(sys.stdin.readline()))).main()
    except MachineError as error:
        _tell(failed=str(error), hint=error.hint)


if __name__ == "__main__":
    main()
