# SPDX-License-Identifier: MIT
"""A model's container, seen from inside: its devices, and what of a read-only image it can write.

There is no GPU here: a CDI specification stands in for NVIDIA's, with two of them, a library that
is mounted, and the hook that writes where ldconfig would.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmuxd import names

from .guest import OPT, complete, configure, sh

CDI = Path("/etc/cdi/nvidia.json")
LIBRARY = Path("/var/tmp/llmux-libcuda")
IN_IMAGE = "/usr/lib/x86_64-linux-gnu/libcuda.so.1"
# What every container has (podman's, by the OCI's runtime specification).
STANDARD = {"/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"}
TERMINALS = {"/dev/pts/ptmx"}
_DEVICES = """
import os, stat
for directory, _, names in os.walk("/dev"):
    for name in names:
        path = os.path.join(directory, name)
        if not os.path.islink(path):
            mode = os.lstat(path).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                print(path)
"""
_WRITE = """
import os, sys
for place in sys.argv[1:]:
    try:
        os.makedirs(place, exist_ok=True)
        open(place + "/probe", "w").close()
    except OSError as error:
        print(place)
"""


# NVIDIA's hook has ldconfig write /etc/ld.so.cache: before the image becomes read-only.
_HOOK = """
import json, sys
bundle = json.load(sys.stdin)["bundle"]
root = json.load(open(bundle + "/config.json"))["root"]["path"]
open(root + "/etc/ld.so.cache", "w").write("of-the-hook")
"""


def inside(script: str, *arguments: str) -> set[str]:
    """The lines that it prints in the model's container."""
    podman = ("podman", "exec", names.container(OPT), "python3", "-c")
    return set(sh(*podman, script, *arguments).split())


def serve(devices: list[str] | None, **more: Any) -> None:
    """Start the model; with `devices` None it has those of its GPUs."""
    configure({OPT: {"args": ["--model", OPT], **more}}, {"devices": devices})
    assert complete(OPT).text


@pytest.fixture
def gpus() -> Iterator[None]:
    """Two of them, as CDI has it: /dev/zero by another name each, and one for both."""

    def edits(*nodes: str) -> dict[str, Any]:
        node = {"type": "c", "major": 1, "minor": 5, "hostPath": "/dev/zero"}
        return {"deviceNodes": [node | {"path": path} for path in nodes]}

    hook = {
        "hookName": "createContainer",
        "path": "/usr/bin/python3",
        "args": ["python3", "-c", _HOOK],
    }
    mount = {
        "hostPath": str(LIBRARY),
        "containerPath": IN_IMAGE,
        "options": ["ro", "nosuid", "nodev", "bind"],
    }
    LIBRARY.write_text("its-code")
    CDI.parent.mkdir(exist_ok=True)
    CDI.write_text(
        json.dumps(
            {
                "cdiVersion": "0.5.0",
                "kind": "nvidia.com/gpu",
                "containerEdits": edits("/dev/nvidiactl") | {"mounts": [mount], "hooks": [hook]},
                "devices": [
                    {"name": str(gpu), "containerEdits": edits(f"/dev/nvidia{gpu}")}
                    for gpu in range(2)
                ],
            }
        )
    )
    yield
    CDI.unlink()
    LIBRARY.unlink()


def test_without_a_gpu_it_has_the_devices_that_every_container_has() -> None:
    serve([])
    assert inside(_DEVICES) == STANDARD | TERMINALS


def test_of_two_gpus_it_has_the_one_that_is_its_own(gpus: None) -> None:
    serve(None, engine="llama-server", canary=False, checkpoint=False, gpus=[1])
    mine = {"/dev/nvidia1", "/dev/nvidiactl"}
    assert inside(_DEVICES) == STANDARD | TERMINALS | mine
    # The driver's files come to their places in an image that is read-only.
    read = "import sys; print(*[open(path).read() for path in sys.argv[1:]])"
    assert inside(read, IN_IMAGE, "/etc/ld.so.cache") == {"its-code", "of-the-hook"}


def test_of_a_read_only_image_it_can_write_to_memory_and_its_caches() -> None:
    serve([], engine="llama-server", canary=False)
    caches = ("/root/.cache/vllm", "/root/.triton/cache", "/root/.nv/ComputeCache")
    memory = ("/tmp", "/var/tmp", "/run", "/dev/shm")
    refused = ("/root", "/usr", "/etc", "/opt", "/var/lib")
    assert inside(_WRITE, *caches, *memory, *refused) == set(refused)
    kept = Path("/var/cache/llmux", names.slug(OPT))
    assert (kept / ".triton/cache/probe").exists()
    assert kept.parent.stat().st_mode & 0o077 == 0
    sh("llmuxctl", "checkpoint", OPT)
    assert complete(OPT).headers["X-LLMux-Activation"] == "restore"
    look = "import os; print(*[p for p in ('/tmp/probe', '/run/probe', '/root/.nv/ComputeCache')"
    assert len(inside(f"{look} if os.path.exists(p)], sep='\\n')")) == 3
