# SPDX-License-Identifier: MIT
"""Who a container's first process is: the server itself, or podman's small init before it.

CRIU brings the first process back last of all, once every other one is there with its memory
(restore_wait_other_tasks in its cr-restore.c). Of vLLM that is the API server: its 0.7 GB were
read for 0.3 s while nobody else was at work, and are read beside the engine's behind an init.
"""

import os
import shutil

from ..config import Engine, ModelConfig

# Where podman looks before PATH (helper_binaries_dir in containers.conf(5)).
PLACES = (
    *("/usr/local/libexec/podman", "/usr/local/lib/podman"),
    *("/usr/libexec/podman", "/usr/lib/podman"),
)
# Who says one of these has thought about it himself.
_OWN = ("--init", "--init-path", "--pid", "--systemd")


def options(model: ModelConfig) -> list[str]:
    """What `podman run` is to be given for it.

    An image of another engine may have an init of its own, which has to be the first.
    """
    named = {word.partition("=")[0] for word in model.podman_args}
    if model.engine is not Engine.VLLM or named.intersection(_OWN):
        return []
    path = os.pathsep.join([*PLACES, os.environ.get("PATH", os.defpath)])
    return ["--init"] if shutil.which("catatonit", path=path) else []
