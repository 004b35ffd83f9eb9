# SPDX-License-Identifier: MIT
"""Who a container's first process is: the server itself, or podman's small init before it.

CRIU brings the first process back last of all, once every other one is there with its memory
(restore_wait_other_tasks in its cr-restore.c). Of vLLM that is the API server: its 0.7 GB were
read for 0.3 s while nobody else was at work, and are read beside the engine's behind an init.
"""

import os
import shutil
from pathlib import Path

NAME = "catatonit"
# Where podman looks before PATH (helper_binaries_dir in containers.conf(5)).
PLACES = (
    *("/usr/local/libexec/podman", "/usr/local/lib/podman"),
    *("/usr/libexec/podman", "/usr/lib/podman"),
)


def path() -> Path | None:
    """The program itself, None where there is none.

    Where podman finds it is a symbolic link on Debian, and CRIU does not bring back a mount of one
    (`mnt-v2: Can't remount … with MS_PRIVATE`, CRIU 4.2.1).
    """
    places = os.pathsep.join([*PLACES, os.environ.get("PATH", os.defpath)])
    found = shutil.which(NAME, path=places)
    return None if found is None else Path(found).resolve()
