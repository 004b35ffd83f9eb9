# SPDX-License-Identifier: MIT
"""What tests load into programs in the machine, which has no compiler: built on the host."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import checkout, process

_THERE = Path("/usr/local/lib/llmux-tests")


@dataclass(frozen=True)
class Library:
    """`source` in the checkout becomes `there` in the machine."""

    there: Path
    source: str

    def build(self) -> bytes:
        """The library itself."""
        with tempfile.TemporaryDirectory() as place:
            built = Path(place) / self.there.name
            source = checkout.top() / self.source
            process.run(["cc", "-shared", "-fPIC", "-O2", "-o", built, source])
            return built.read_bytes()


# NVML without a GPU.
NVML = Library(_THERE / "libnvidia-ml.so.1", "tests/unit/fake_nvml.c")
# CUDA's checkpoint API without a GPU.
CUDA = Library(_THERE / "libcuda.so.1", "tests/unit/fake_libcuda.c")
# A clock that is set while a program runs.
CLOCK = Library(_THERE / "libclock.so", "tests/machine/soak/clock.c")


def built() -> list[tuple[Path, bytes]]:
    """All of them; none where this host has no compiler, and then the tests with them fail."""
    if shutil.which("cc") is None:
        process.say("no C compiler on this host: there will be no driver to test with")
        return []
    return [(library.there, library.build()) for library in (NVML, CUDA, CLOCK)]
