# SPDX-License-Identifier: MIT
"""A host that is not any more as it was when an image was taken: each change is told by name.

What NVIDIA's driver shows in /proc, its CDI file, CRIU's plugin and cuda-checkpoint are stand-ins;
the model has a device of the driver's name.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from llmuxd import names

from .guest import (
    OPT,
    complete,
    configure,
    counter,
    image,
    journal,
    record,
    sh,
    stop_everything,
)

DEVICE = Path("/dev/nvidia-test")
DRIVER = Path("/proc/driver")
CARD = DRIVER / "nvidia/gpus/0000:01:00.0/information"
CDI = Path("/etc/cdi/nvidia-test.yaml")
PLUGIN = Path("/usr/local/lib/criu/cuda_plugin.so")
TOOL = Path("/usr/local/bin/cuda-checkpoint")
CRIU = Path("/usr/local/sbin/criu")
MACHINE_ID = Path("/etc/machine-id")
DROP_IN = Path("/run/systemd/system/llmux-model@.service.d/kernel.conf")


@pytest.fixture
def host() -> Iterator[None]:
    """It has a GPU, as far as files go; one model is checkpointed there."""
    sh("mknod", str(DEVICE), "c", "1", "3")
    configure({OPT: {"args": ["--model", OPT], "devices": [str(DEVICE)]}})
    # Behind llmuxd's start: there is no NVML for who measures GPUs.
    sh("mount", "-t", "tmpfs", "driver", str(DRIVER))
    CARD.parent.mkdir(parents=True)
    CARD.write_text("Model: Stand-in\nGPU UUID: GPU-1\n", encoding="ascii")
    (DRIVER / "nvidia/version").write_text("NVRM version: 580\n", encoding="ascii")
    complete(OPT)
    sh("llmuxctl", "checkpoint", OPT)
    yield
    stop_everything()
    sh("umount", str(DRIVER))
    DEVICE.unlink()


@contextmanager
def _holds(path: Path, text: str) -> Iterator[None]:
    """The file says something else, or is there at all."""
    before = path.read_text(encoding="ascii") if path.exists() else None
    made = path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")
    path.chmod(0o755)
    try:
        yield
    finally:
        if before is not None:
            path.write_text(before, encoding="ascii")
        elif made:
            path.unlink()
        else:
            shutil.rmtree(path.parent)


@contextmanager
def _another_kernel() -> Iterator[None]:
    """Its release, as the unit's programs see it."""
    other = ":/usr/bin/setarch --uname-2.6 /usr/libexec/llmux/llmux-model"
    text = f"[Service]\nExecStart=\nExecStart={other} start -- %i\n"
    text += f"ExecStop=\nExecStop={other} stop -- %i\n"
    try:
        with _holds(DROP_IN, text):
            sh("systemctl", "daemon-reload")
            yield
    finally:
        sh("systemctl", "daemon-reload")


@contextmanager
def _another_machine_id() -> Iterator[None]:
    other = Path("/run/another-machine-id")
    other.write_text("0123456789abcdef0123456789abcdef\n", encoding="ascii")
    sh("mount", "--bind", str(other), str(MACHINE_ID))
    try:
        yield
    finally:
        sh("umount", str(MACHINE_ID))
        other.unlink()


_CRIU = """#!/bin/sh
[ "$1" = --version ] && exec echo Version: 99
exec /usr/sbin/criu "$@"
"""
_CDI = """
cdiVersion: 0.6.0
kind: example.com/test
devices: [{name: test, containerEdits: {env: [TEST=1]}}]
"""


_CHANGES: tuple[tuple[str, Callable[[], AbstractContextManager[None]]], ...] = (
    ("CRIU", lambda: _holds(CRIU, _CRIU)),
    ("the NVIDIA driver", lambda: _holds(DRIVER / "nvidia/version", "NVRM version: 590\n")),
    ("the host's GPUs", lambda: _holds(CARD, "Model: Stand-in\nGPU UUID: GPU-2\n")),
    ("CRIU's CUDA plugin", lambda: _holds(PLUGIN, "a plugin")),
    ("cuda-checkpoint", lambda: _holds(TOOL, "#!/bin/sh\n")),
    ("the CDI specification of the GPUs", lambda: _holds(CDI, _CDI)),
    ("the kernel", _another_kernel),
    ("the machine", _another_machine_id),
)


def test_each_change_of_the_host_means_a_cold_start_and_a_new_image(host: None) -> None:
    """One after the other, each of them for good."""
    with ExitStack() as changes:
        for told, change in _CHANGES:
            before, old = record(OPT), image(OPT)
            changes.enter_context(change())
            sh("llmuxctl", "switch", OPT)
            # A new server, and not a byte left of what it was not restored from.
            assert counter(OPT) == 0 and not old.exists()
            containers = sh("podman", "ps", "--all", "--quiet", "--no-trunc")
            assert containers and before["container_id"] not in containers
            assert record(OPT)["invalid"] == f"{told} changed"
            complete(OPT)
            sh("llmuxctl", "checkpoint", OPT)
            assert record(OPT)["identity"] != before["identity"]
            sh("llmuxctl", "switch", OPT)
            assert counter(OPT) == 1
            sh("llmuxctl", "checkpoint", OPT)
    said = journal(names.unit(OPT))
    for told, _ in _CHANGES:
        assert said.count(f"cold start: the checkpoint cannot be used: {told} changed\n") == 1
    assert "the restore failed" not in said
