# SPDX-License-Identifier: MIT
"""What a program can do that took llmuxd over: run in its unit's place, prints {attempt: errno}."""

import ctypes
import errno
import json
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

_SYS_IO_URING_SETUP = 425  # on every architecture
_CLONE_NEWUSER = 0x10000000


def connect(family: int, address: str | tuple[str, int]) -> None:
    with socket.socket(family) as tried:
        tried.settimeout(5)
        tried.connect(address)


def send(address: tuple[str, int]) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as tried:
        tried.sendto(b"probe", address)


def library_call(function: str, *arguments: int | bytes) -> None:
    if ctypes.CDLL(None, use_errno=True)[function](*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def writable_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def set_user_bit() -> None:
    path = Path("/run/llmux/probe")
    path.touch()
    try:
        path.chmod(0o4755)
    finally:
        path.unlink()


def write(path: str) -> None:
    Path(path).touch()
    Path(path).unlink()


ATTEMPTS: dict[str, Callable[[], object]] = {
    "write /run/llmux": lambda: write("/run/llmux/probe"),
    "write /var/lib/llmux": lambda: write("/var/lib/llmux/probe"),
    "read the configuration": Path("/etc/llmux/llmux.yaml").read_text,
    "read /proc/meminfo": Path("/proc/meminfo").read_text,
    "connect to the bus": lambda: connect(socket.AF_UNIX, "/run/dbus/system_bus_socket"),
    "connect to loopback": lambda: connect(socket.AF_INET, ("127.0.0.1", 9)),
    "send to podman's network": lambda: send(("10.89.7.1", 9)),
    "send elsewhere": lambda: send(("192.0.2.1", 9)),
    "send to the host's network": lambda: send(("192.168.7.1", 9)),
    "send to another of its networks": lambda: send(("10.7.7.1", 9)),
    "write /etc": lambda: write("/etc/probe"),
    "write /usr": lambda: write("/usr/probe"),
    "write /var/lib/containers": lambda: write("/var/lib/containers/probe"),
    "write a kernel setting": lambda: Path("/proc/sys/kernel/hostname").write_text("probe"),
    "write a cgroup": lambda: os.mkdir("/sys/fs/cgroup/probe"),
    "read /root": lambda: os.listdir("/root"),
    "read /dev/kmsg": Path("/dev/kmsg").read_text,
    "see PID 1": lambda: os.stat("/proc/1"),
    "become another user": lambda: os.setuid(65534),
    "real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "a user namespace": lambda: library_call("unshare", _CLONE_NEWUSER),
    "a netlink socket": lambda: socket.socket(socket.AF_NETLINK).close(),
    "writable code": writable_code,
    "a set-user-ID file": set_user_bit,
    "io_uring": lambda: library_call("syscall", _SYS_IO_URING_SETUP, 1, bytes(256)),
}


def attempt(what: Callable[[], object]) -> str:
    try:
        what()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


if __name__ == "__main__":
    print(json.dumps({name: attempt(what) for name, what in ATTEMPTS.items()}))
