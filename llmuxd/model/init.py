# SPDX-License-Identifier: MIT
"""Who a container's first process is: the server itself, or podman's small init before it.

CRIU brings the first process back last of all, once every other one is there with its memory
(restore_wait_other_tasks in its cr-restore.c). Of vLLM that is the API server: its 0.7 GB were
read for 0.3 s while nobody else was at work, and are read beside the engine's behind an init.
"""

import os
import shutil
from pathlib import Path

from ..config import Engine, ModelConfig

NAME = "catatonit"
# Where podman looks before PATH (helper_binaries_dir in containers.conf(5)).
PLACES = (
    *("/usr/local/libexec/podman", "/usr/local/lib/podman"),
    *("/usr/libexec/podman", "/usr/lib/podman"),
)
# Who says one of these has thought about it himself.
_OWN = {"--init-path", "--pid", "--systemd"}
_YES = {"--init", "--init=true", "--init=1", "--init=t", "--init=T", "--init=TRUE", "--init=True"}


def options(model: ModelConfig) -> list[str]:
    """What `podman run` is to be given for it, before what the configuration has for it.

    An image of another engine may have an init of its own, which has to be the first. podman's own
    path of it is a symbolic link on Debian, and CRIU does not bring back a mount of one
    (`mnt-v2: Can't remount … with MS_PRIVATE`, CRIU 4.2.1).
    """
    named = {word.partition("=")[0] for word in model.podman_args}
    wanted = model.engine is Engine.VLLM or _YES.intersection(model.podman_args)
    path = os.pathsep.join([*PLACES, os.environ.get("PATH", os.defpath)])
    found = shutil.which(NAME, path=path)
    if found is None or not wanted or named & _OWN:
        return []
    return ["--init", f"--init-path={Path(found).resolve()}"]
