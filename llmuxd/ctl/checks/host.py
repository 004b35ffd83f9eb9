# SPDX-License-Identifier: MIT
"""The host as the checks see it: commands, files and sizes; nothing here raises or hangs."""

import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from glob import glob
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ...model import place

TIMEOUT = 30.0
# systemd's own for units. What root's shell finds elsewhere, a model's unit does not.
UNIT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/libexec/llmux/bin"

Version = tuple[int, ...]


class Done(NamedTuple):
    """A command's end. 127: there is no such program; 124: it did not end in time."""

    status: int
    out: str
    err: str = ""

    @property
    def text(self) -> str:
        """All that it said."""
        return f"{self.out}\n{self.err}".strip()

    @property
    def reason(self) -> str:
        """The one line worth telling of a failure."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        # CRIU complains of this limit on hosts where all is well.
        telling = [line for line in lines if "RLIMIT_NOFILE" not in line]
        errors = [line for line in telling if "rror" in line]
        chosen = (errors or telling or lines or [f"exit status {self.status}"])[0]
        return chosen.removeprefix("Error: ")[:300]


class Host:
    """This machine."""

    def __init__(self) -> None:
        self._hung: set[str] = set()

    def run(self, argv: Sequence[str]) -> Done:
        """Run a command as a model's unit would: same PATH, no input, English, a time limit."""
        if argv[0] in self._hung:
            # It would hang again, and its users have waited once.
            return Done(124, "", f"{argv[0]} did not end within {TIMEOUT:.0f} s")
        env = {"PATH": UNIT_PATH, "HOME": os.environ.get("HOME", "/root"), "LC_ALL": "C.UTF-8"}
        # Files, because a pipe stays open as long as any descendant of a killed command lives.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=env,
                    start_new_session=True,
                )
            except OSError as error:
                return Done(127, "", f"{argv[0]}: {error.strerror}")
            try:
                status = process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                _kill(process)
                self._hung.add(argv[0])
                return Done(124, "", f"{argv[0]} did not end within {TIMEOUT:.0f} s")
            out.seek(0)
            err.seek(0)
            return Done(
                status, out.read().decode(errors="replace"), err.read().decode(errors="replace")
            )

    def read_bytes(self, path: str) -> bytes | None:
        """A file's content; None where it cannot be read."""
        try:
            return Path(path).read_bytes()
        except OSError:
            return None

    def read(self, path: str) -> str | None:
        """A file's text; None where it cannot be read."""
        content = self.read_bytes(path)
        return None if content is None else content.decode(errors="replace")

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        return os.path.exists(path)  # noqa: PTH110  (Path's raises for what may not be looked at)

    def which(self, program: str) -> str | None:
        """Where a model's unit would find the program."""
        return shutil.which(program, path=UNIT_PATH)

    def glob(self, pattern: str) -> list[str]:
        """The paths that match, in order."""
        return sorted(glob(pattern))  # noqa: PTH207  (an absolute pattern)

    def disk_free(self, path: str) -> int | None:
        """Bytes that root can still write there; None where that is not known."""
        try:
            return shutil.disk_usage(path).free
        except OSError:
            return None

    def unsafe(self, path: str) -> str | None:
        """What at or above the path others than root may write to; None where nothing is."""
        try:
            found = place.open_to_others(Path(path))
        except OSError:
            return None
        return str(found) if found is not None else None

    def requirements(self) -> list[str]:
        """What llmuxd's own package says that it needs of Python's; empty where it is none."""
        try:
            told = metadata.metadata("llmuxd")
        except metadata.PackageNotFoundError:
            return []
        return [f"python{told['Requires-Python']}", *(told.get_all("Requires-Dist") or [])]

    def package(self, name: str) -> str | None:
        """The version of a package of the Python that llmuxd runs on; None where it is not here."""
        try:
            return platform.python_version() if name == "python" else metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    def kernel(self) -> str:
        """The running kernel's release."""
        return os.uname().release

    def is_root(self) -> bool:
        """Whether this process may do what root may."""
        return os.geteuid() == 0


def version(text: str) -> Version:
    """The first dotted number in `text`; empty where there is none."""
    found = re.search(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def dotted(number: Version) -> str:
    """A version as people write it."""
    return ".".join(str(part) for part in number)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # One that hangs in the kernel cannot be killed, and must not be waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
