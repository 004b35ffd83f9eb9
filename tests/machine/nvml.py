# SPDX-License-Identifier: MIT
"""NVML without a GPU, for the machine, which has no compiler: it is built on the host."""

import shutil
import tempfile
from pathlib import Path

from . import checkout, process

THERE = Path("/usr/local/lib/llmux-tests/libnvidia-ml.so.1")

_SOURCE = "tests/unit/fake_nvml.c"


def library() -> bytes:
    """The library; empty where this host has no compiler, and then the tests with it fail."""
    if shutil.which("cc") is None:
        process.say("no C compiler on this host: there will be no NVML to test with")
        return b""
    with tempfile.TemporaryDirectory() as place:
        built = Path(place) / THERE.name
        process.run(["cc", "-shared", "-fPIC", "-o", built, checkout.top() / _SOURCE])
        return built.read_bytes()
