# SPDX-License-Identifier: MIT
"""A libcuda without a GPU: fake_libcuda.c, compiled, and the processes that it is to know."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmuxd.model.gpu import State

SOURCE = Path(__file__).with_name("fake_libcuda.c")


def compiled(directory: Path, *options: str) -> Path:
    """The library in `directory`, under the name by which it is looked for."""
    return compile_library(SOURCE, directory / "libcuda.so.1", *options)


def compile_library(source: Path, library: Path, *options: str) -> Path:
    """A shared library of one C file; returns where it is."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *options]
    subprocess.run([*command, "-o", str(library), str(source)], check=True)
    return library


@dataclass(frozen=True)
class Call:
    """One call as it came in: the bytes of its argument, and of what that points to."""

    name: str
    pid: int
    argument: bytes
    pairs: bytes


@dataclass(frozen=True)
class FakeCuda:
    """Its processes and calls. `library` is for Driver, its directory for LD_LIBRARY_PATH."""

    library: Path
    directory: Path
    monkeypatch: pytest.MonkeyPatch

    def process(self, pid: int, state: State = State.RUNNING) -> int:
        """Let there be a process that uses CUDA."""
        (self.directory / str(pid)).write_text(str(int(state)))
        return pid

    def state(self, pid: int) -> State:
        return State(int((self.directory / str(pid)).read_text()))

    def fail(self, *orders: str) -> None:
        """As FAKE_CUDA_CODES has them, cuCheckpointProcess left out: Lock:12=600."""
        whole = ",".join(f"cuCheckpointProcess{order}" for order in orders)
        self.monkeypatch.setenv("FAKE_CUDA_CODES", whole)

    def calls(self) -> list[Call]:
        """All calls that change something, in their order."""
        made = []
        for line in self._log():
            name, pid, argument, pairs = line.split(" ")
            short = name.removeprefix("cuCheckpointProcess")
            if short not in ("GetState", "GetRestoreThreadId"):
                made.append(Call(short, int(pid), bytes.fromhex(argument), bytes.fromhex(pairs)))
        return made

    def steps(self) -> list[tuple[str, int]]:
        """The same, names and pids alone, cuInit left out."""
        return [(call.name, call.pid) for call in self.calls() if call.name != "cuInit"]

    def asked(self) -> list[str]:
        """The names of all calls, in their order."""
        return [line.split(" ")[0] for line in self._log()]

    def _log(self) -> list[str]:
        path = self.directory / "log"
        return path.read_text().splitlines() if path.exists() else []
