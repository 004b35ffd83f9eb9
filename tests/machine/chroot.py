# SPDX-License-Identifier: MIT
"""Runs programs of a root file system that is not booted, and leaves it as it was."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from . import process

# Everything that is mounted here is gone with the mount namespace.
_SCRIPT = """
set -eu
lower=$1; binds=$2; shift 2
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$lower,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
mount -t proc proc /mnt/root/proc
mount --rbind /sys /mnt/root/sys
mount --rbind /dev /mnt/root/dev
mount -t tmpfs tmpfs /mnt/root/run
mount -t tmpfs tmpfs /mnt/root/tmp
printf '%s\\n' "$binds" | while IFS=: read -r here there; do
    [ -n "$here" ] || continue
    mkdir -p "/mnt/root$here"
    mount --bind "$there" "/mnt/root$here"
done
exec chroot /mnt/root env -i HOME=/root LANG=C.UTF-8 \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
"""


def run(
    root: Path,
    argv: process.Argv,
    *,
    binds: Mapping[str, Path] | None = None,
    stdin: IO[bytes] | None = None,
) -> str:
    """Runs argv in root. binds: path in it -> directory of the host, writable; the rest is lost."""
    bound = "\n".join(f"{here}:{there}" for here, there in (binds or {}).items())
    return process.run(
        process.contained(["sh", "-c", _SCRIPT, "sh", root, bound, *argv]),
        stdin=subprocess.DEVNULL if stdin is None else stdin,
    )
