# SPDX-License-Identifier: MIT
"""What can safely be done about a failed check: shown first, then made. Nothing is ever removed."""

import os
from dataclasses import dataclass
from pathlib import Path

from ...errors import NotChanged
from .host import Host


@dataclass(frozen=True)
class AddLines:
    """Lines at the end of a file, which is made where it is missing."""

    path: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"add to {self.path}:", *(f"    {line}" for line in self.lines)])

    def make(self, host: Host) -> None:
        """The file has them then, or is as it was."""
        path = Path(self.path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.read_bytes() if path.exists() else b""
            if before and not before.endswith(b"\n"):
                before += b"\n"
            mode = path.stat().st_mode & 0o7777 if before else 0o644
            # What a link points to, not the link, is to be replaced.
            target = path.resolve()
            temporary = target.with_name(f"{target.name}.llmux-new")
            temporary.write_bytes(before + "".join(f"{line}\n" for line in self.lines).encode())
            os.chmod(temporary, mode)  # noqa: PTH101  (also where nothing may be followed)
            temporary.replace(target)
        except OSError as error:
            raise NotChanged(f"{self.path} cannot be written: {error.strerror}") from None


@dataclass(frozen=True)
class MakeDirectory:
    """A directory, and those above it."""

    path: str

    def __str__(self) -> str:
        return f"mkdir -p {self.path}"

    def make(self, host: Host) -> None:
        """It is there then."""
        try:
            Path(self.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotChanged(f"{self.path} cannot be made: {error.strerror}") from None


@dataclass(frozen=True)
class Run:
    """A command that changes nothing on disk."""

    argv: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.argv)

    def make(self, host: Host) -> None:
        """It ended with status 0 then."""
        done = host.run(self.argv)
        if done.status != 0:
            raise NotChanged(f"{self}: {done.reason}")


Change = AddLines | MakeDirectory | Run
