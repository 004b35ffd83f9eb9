# SPDX-License-Identifier: MIT
"""NVML without a GPU: fake_nvml.c, compiled, and the file that tells it what is on the GPUs."""

from dataclasses import dataclass
from pathlib import Path

from .fake_cuda import compile_library

SOURCE = Path(__file__).with_name("fake_nvml.c")
H100 = "gpu 81559 551 0 NVIDIA H100 80GB HBM3"


def compiled(directory: Path) -> Path:
    """The library in `directory`, under the name by which it is looked for."""
    return compile_library(SOURCE, directory / "libnvidia-ml.so.1")


@dataclass(frozen=True)
class FakeNvml:
    """`library` is for Nvml and Meter; `tell` replaces all that it says, in fake_nvml.c's lines."""

    library: Path
    file: Path

    def tell(self, *lines: str) -> None:
        """At once: a call in another thread sees the old lines or these."""
        new = self.file.with_name("new")
        new.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        new.replace(self.file)
