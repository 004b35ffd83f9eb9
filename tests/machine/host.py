# SPDX-License-Identifier: MIT
"""This host: what it lacks, and which cgroups it has."""

import os
import shutil
from pathlib import Path

from . import process
from .errors import MachineError

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

_PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "socat": "socat",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "tar": "tar",
    "pip3": "python3-pip",
    _KEYRING: "debian-archive-keyring",
}


def require_root() -> None:
    if os.geteuid():
        raise MachineError("the machine needs root", "run this as root")


def install_tools() -> None:
    """Installs what is missing on this host; asks no registry where nothing is."""
    missing = sorted({package for tool, package in _PACKAGES.items() if not _has(tool)})
    if not missing:
        return
    hint = f"install these packages by hand: {' '.join(missing)}"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with process.step(f"host: installing {' '.join(missing)}"):
        process.run(["apt-get", "-q", "update"], env=environment, hint=hint)
        process.run(
            ["apt-get", "-q", "install", "--yes", "--no-install-recommends", *missing],
            env=environment,
            hint=hint,
        )


def _has(tool: str) -> bool:
    return Path(tool).exists() if tool.startswith("/") else shutil.which(tool) is not None


def hybrid_cgroups() -> bool:
    """Whether version 1 controllers are mounted: then none of them reaches a machine."""
    return not Path("/sys/fs/cgroup/cgroup.controllers").exists()


def cgroup_root() -> Path:
    """Where the version 2 hierarchy is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise MachineError(
        "no version 2 cgroups here",
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified (after a mkdir of it)",
    )
