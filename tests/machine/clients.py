# SPDX-License-Identifier: MIT
"""The clients that people call models with, for the machine's own Python: /srv/models/clients.

They lie beside the models because they are the same to a machine: made once, bound, only read.
"""

import platform
from pathlib import Path

from . import process

# The root's Python; its Debian has no package of these.
_PYTHON = "3.14"
# OpenAI's and Anthropic's SDKs, litellm, and all that they need, each file with its hash;
# `make requirements` writes it.
_PINNED = Path(__file__).with_name("clients.txt")
# Such wheels as the root's glibc takes.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")


def recipe() -> str:
    return "\n".join([_PYTHON, _PINNED.read_text(encoding="ascii")])


def make(target: Path, downloads: Path) -> None:
    """Fills target/clients, a directory for sys.path."""
    machine = platform.machine()
    process.run(
        [
            *("pip3", "install", "--quiet", "--no-compile", "--no-deps", "--require-hashes"),
            *("--target", target / "clients"),
            *("--only-binary=:all:", f"--python-version={_PYTHON}", "--implementation=cp"),
            *(f"--platform={name}_{machine}" for name in _PLATFORMS),
            *("-r", _PINNED),
        ],
        hint="is PyPI in reach?",
    )
