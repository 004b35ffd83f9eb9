# SPDX-License-Identifier: MIT
"""Takes a thing away from the host, for the time of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.machine.ring.guest import sh

PLUGIN = Path("/usr/lib/criu/cuda_plugin.so")
_LIBRARIES = Path("/etc/ld.so.conf.d/nvidia.conf")


@contextmanager
def moved(path: Path) -> Iterator[None]:
    """A file or directory."""
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@contextmanager
def stopped(*units: str) -> Iterator[None]:
    """Units, of which the first one starts the others."""
    sh("systemctl", "stop", *units)
    try:
        yield
    finally:
        sh("systemctl", "start", units[0])


@contextmanager
def without_libcuda() -> Iterator[None]:
    """libcuda, from ld.so's cache."""
    with moved(_LIBRARIES):
        sh("ldconfig")
        yield
    sh("ldconfig")


@contextmanager
def sysctl(name: str, value: str, before: str) -> Iterator[None]:
    """A setting of the kernel."""
    sh("sysctl", "-q", "-w", f"{name}={value}")
    try:
        yield
    finally:
        sh("sysctl", "-q", "-w", f"{name}={before}")


@contextmanager
def hidden(path: Path) -> Iterator[None]:
    """What a file says."""
    sh("mount", "--bind", "/dev/null", str(path))
    try:
        yield
    finally:
        sh("umount", str(path))


@contextmanager
def broken(path: Path) -> Iterator[None]:
    """What a program can do, as an old cuda-checkpoint cannot."""
    with moved(path):
        path.write_text("#!/bin/sh\necho usage: --toggle --pid\n")
        path.chmod(0o755)
        try:
            yield
        finally:
            path.unlink()
