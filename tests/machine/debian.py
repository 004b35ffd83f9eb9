# SPDX-License-Identifier: MIT
"""Root file systems of Debian, from its own packages."""

from collections.abc import Sequence
from pathlib import Path

from . import process

# What nobody reads in a throw-away machine; dpkg leaves it out.
_EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
)


def bootstrap(target: Path, suite: str, packages: Sequence[str]) -> None:
    """Installs Debian's essential packages and these into target, an empty directory."""
    command: list[str | Path] = [
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"),
        # A mirror's Release file of a suite in development may be past its date.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        *(f"--dpkgopt=path-exclude={path}" for path in _EXCLUDED),
        f"--include={','.join(packages)}",
        *(suite, target),
    ]
    process.run(process.contained(command), hint="is a Debian mirror in reach?")
    # It made these for a host that it was told nothing about: each user of the root has its own.
    for name in ("etc/hostname", "etc/resolv.conf"):
        (target / name).unlink(missing_ok=True)
