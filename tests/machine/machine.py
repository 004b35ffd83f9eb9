# SPDX-License-Identifier: MIT
"""A machine: a systemd of its own, booted from the cache, thrown away when it is powered off."""

import collections
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import cache, cgroup, checkout, host, keeper, libraries, models, process, root, store
from .errors import MachineError

_BOOT_SECONDS = 120.0
_POWEROFF_SECONDS = 60.0
# What `systemctl poweroff` comes to. It asks logind first, twice for 25 s where a test restarted
# the bus: logind is not on the new one.
_POWEROFF = (
    *("systemctl", "start", "--no-block", "--job-mode=replace-irreversibly"),
    "poweroff.target",
)

_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LOGNAME": "root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SHELL": "/bin/bash",
    "USER": "root",
}


class Machine:
    """The machine of this name; two names are two machines.

    >>> with contextlib.closing(Machine("mine")) as machine:
    ...     machine.boot()
    ...     machine.run(["systemctl", "is-system-running"]).stdout
    """

    def __init__(self, name: str = "default") -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", name):
            raise MachineError(
                f"{name!r} can't be a machine's name", "use 1 to 40 of a-z, 0-9 and inner dashes"
            )
        self.name = name
        self._run = keeper.run_directory(name)

    # Up and down

    def is_up(self) -> bool:
        return keeper.alive(self.name) and (self._run / "leader").exists()

    @property
    def leader(self) -> int:
        """The host's pid of the machine's PID 1."""
        if not self.is_up():
            raise MachineError(f"machine {self.name} is not up", "python3 -m tests.machine boot")
        return int((self._run / "leader").read_text())

    def boot(self) -> None:
        """Boots the machine and installs this checkout; where it is up, only what changed."""
        host.require_root()
        with self._locked():
            if self.is_up():
                self._install(self.leader)
            else:
                self._boot()

    def poweroff(self) -> None:
        """Ends the machine as its user would, and removes all that it left; kills what resists."""
        host.require_root()
        with self._locked():
            if keeper.alive(self.name):
                self._end()
            keeper.sweep(self.name)
            self._lock.unlink()

    close = poweroff

    @property
    def _lock(self) -> Path:
        # Beside the directory, which goes with the last machine.
        return keeper.RUN.with_name(f"{keeper.RUN.name}.{self.name}.lock")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One boots or ends this machine at a time."""
        with cache.locked(self._lock):
            yield

    def _boot(self) -> None:
        keeper.sweep(self.name)
        plan = self._plan()
        # The keeper is to outlive this process, and a Ctrl-C here must not reach the machine:
        # the end of its input tells the keeper.
        with subprocess.Popen(
            [
                *("setsid", "--fork", "unshare", "--mount", "--propagation", "private"),
                *(sys.executable, "-B", "-m", keeper.__name__, self.name),
            ],
            cwd=checkout.top(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as kept:
            try:
                with process.step(f"machine {self.name}: booting"):
                    leader = _ask(kept, plan.dump(), "ready")
                # CRIU restores a container's hostname by sysctl; keeper.py says why only from now.
                self._shell(leader, "mount -o remount,bind,rw /proc/sys")
                self._install(leader)
                _ask(kept, "keep", "kept")
            except BaseException:
                _abandon(kept)
                raise

    def _plan(self) -> keeper.Plan:
        system = root.entry().build()
        images = {name: entry.place for name, entry in store.entries().items() if entry.is_built}
        binds = {
            "/usr/src/llmuxd": str(checkout.top()),
            **{f"{store.THERE}/{name}": str(path) for name, path in images.items()},
        }
        files = {
            "/etc/hostname": f"llmux-{self.name}\n",
            "/etc/hosts": f"127.0.0.1 localhost llmux-{self.name}\n::1 localhost\n",
            "/etc/containers/storage.conf": store.configuration(list(images)),
        }
        if host.hybrid_cgroups():
            crun = system / "etc/criu/crun.conf"
            # CRIU sees the host's version 1 cgroups and would restore their properties; and no
            # controller reaches the machine, so podman must not set its default limit of pids.
            files["/etc/criu/crun.conf"] = crun.read_text() + "manage-cgroups=ignore\n"
            files["/etc/containers/containers.conf.d/hybrid.conf"] = "[containers]\npids_limit=0\n"
        return keeper.Plan(
            lower=str(system),
            state=str(keeper.state_directory(self.name)),
            binds=binds,
            models=[str(path) for path in models.built()],
            files=files,
        )

    def _end(self) -> None:
        keepers = os.pidfd_open(self._keeper())
        with process.step(f"machine {self.name}: powering off"):
            if self.is_up():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.run(_POWEROFF, check=False, timeout=_POWEROFF_SECONDS)
                if _readable(keepers, _POWEROFF_SECONDS):
                    return
                process.say(f"machine {self.name}: does not end, killing it")
            # What the keeper started dies with it, by their parent-death signals.
            signal.pidfd_send_signal(keepers, signal.SIGKILL)
            if not _readable(keepers, _POWEROFF_SECONDS):
                raise MachineError(f"machine {self.name} can't be killed")

    def _keeper(self) -> int:
        return int((self._run / "keeper").read_text())

    # The checkout in it

    def _install(self, leader: int) -> None:
        """Installs the checkout as a package would, if it changed since it last was."""
        if not (checkout.top() / "Makefile").exists():
            process.say("this checkout has no Makefile: nothing to install")
            return
        fingerprint = checkout.fingerprint()
        installed = self._run / "installed"
        if installed.exists() and installed.read_text() == fingerprint:
            return
        with process.step(f"machine {self.name}: make install"):
            self._shell(leader, _INSTALL, checkout.archive())
            for there, library in libraries.built():
                self._shell(leader, f"install -D -m 0644 /dev/stdin {there}", library)
        installed.write_text(fingerprint)

    def _shell(self, leader: int, script: str, given: bytes = b"") -> None:
        """Runs a script of ours in the machine, which may not be up yet."""
        done = subprocess.run(
            self._enter(leader, ["bash", "-euc", script]),
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            words = done.stdout.decode(errors="replace").splitlines()[-25:]
            raise MachineError("\n    ".join(["this failed in the machine:", *words]))

    # Commands in it

    def command(self, argv: Sequence[str]) -> list[str]:
        """What runs argv in the machine when it is run on the host."""
        return self._enter(self.leader, argv)

    def _enter(self, leader: int, argv: Sequence[str]) -> list[str]:
        procs = cgroup.visitors(self.name) / "cgroup.procs"
        environment = {**_ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")}
        return [
            *("sh", "-c", 'echo $$ >"$0" && exec "$@"', str(procs)),
            *("nsenter", f"--target={leader}", "--all", "--root", "--wd"),
            # If nsenter is killed, its child would go on unseen.
            *("setpriv", "--pdeathsig", "KILL"),
            *("env", "-i", *(f"{key}={value}" for key, value in environment.items())),
            *argv,
        ]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in the machine, its output captured.

        check: a non-zero exit status is a MachineError; timeout: seconds, then the command is
        killed and subprocess.TimeoutExpired raised.
        """
        command = self.command(argv)
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, **given
        )
        if check and done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines()[-15:]
            raise MachineError(
                "\n    ".join([f"{' '.join(argv)}: exit status {done.returncode}", *words])
            )
        return done

    @contextmanager
    def forward(self, host_port: int, guest_port: int) -> Iterator[subprocess.Popen[str]]:
        """Relays 127.0.0.1:host_port of the host to 127.0.0.1:guest_port in the machine."""
        listen = f"TCP-LISTEN:{host_port},bind=127.0.0.1,reuseaddr,fork,backlog=128"
        connect = f"nsenter --target={self.leader} --net socat - TCP\\:127.0.0.1\\:{guest_port}"
        with subprocess.Popen(
            # -d -d: it says when it listens; -t: an answer may come long after its request ended
            ["socat", "-d", "-d", "-t", "3600", listen, f"EXEC:{connect}"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # One group with the relays of its connections: they end together.
            start_new_session=True,
        ) as socat:
            reader: threading.Thread | None = None
            try:
                reader = _await_listening(socat, host_port)
                yield socat
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(socat.pid, signal.SIGTERM)
                if reader is not None:
                    reader.join()


# Reads the checkout as a tar file; from a copy, because building writes beside its sources.
_INSTALL = """
copy=$(mktemp -d /var/tmp/llmuxd.XXXXXX)
trap 'rm -rf "$copy"' EXIT
tar -C "$copy" -x
make -C "$copy" install DESTDIR= PREFIX=/usr
install -D -m 0644 "$copy/tests/machine/llmux.yaml" /etc/llmux/llmux.yaml
systemctl daemon-reload
systemctl reload dbus.service
journalctl --update-catalog
"""


def _ask(kept: subprocess.Popen[str], line: str, answer: str) -> Any:
    """Sends the keeper a line and returns what it answers."""
    assert kept.stdin is not None
    assert kept.stdout is not None
    print(line, file=kept.stdin, flush=True)
    if not _readable(kept.stdout.fileno(), _BOOT_SECONDS):
        raise MachineError(f"the machine was not {answer} within {_BOOT_SECONDS:.0f} s")
    told = json.loads(kept.stdout.readline() or '{"failed": "the machine has no keeper any more"}')
    if "failed" in told:
        raise MachineError(told["failed"], told.get("hint", ""))
    return told[answer]


def _await_listening(socat: subprocess.Popen[str], port: int) -> threading.Thread:
    """Returns once it listens, with the thread that reads what it tells after that."""
    assert socat.stderr is not None
    why = "socat ended"
    for line in socat.stderr:
        if " listening on " in line:
            # It goes on to tell of each connection, and must never wait for a reader.
            reader = threading.Thread(target=collections.deque, args=(socat.stderr, 0), daemon=True)
            reader.start()
            return reader
        if " E " in line:
            why = line.strip().rpartition(": ")[2]
    raise MachineError(f"port {port} of this host: {why}", "use another one")


def _abandon(kept: subprocess.Popen[str]) -> None:
    """Ends the machine, and waits until all that it left is removed."""
    assert kept.stdin is not None
    assert kept.stdout is not None
    kept.stdin.close()
    kept.stdout.read()


def _readable(descriptor: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))
