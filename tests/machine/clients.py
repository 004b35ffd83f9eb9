# SPDX-License-Identifier: MIT
"""The SDKs that people call models with, for the machine's own Python: /srv/models/clients.

They lie beside the models because they are the same to a machine: made once, bound, only read.
"""

import platform
from pathlib import Path

from . import process

# The root's Python; its Debian has no package of these.
_PYTHON = "3.14"
# The two, and all that they need.
_PACKAGES = (
    *("anthropic==2.13.0", "openai==3.57.0"),
    *("annotated-types==0.8.0", "anyio==4.16.0", "docstring-parser==0.18.0", "h11==0.16.0"),
    *("httpcore2==2.16.2", "httpx2==2.16.2", "idna==3.20", "jiter==0.19.0"),
    *("opentelemetry-api==1.45.2", "pydantic==2.14.4", "pydantic-core==2.50.5"),
    *("sniffio==1.3.1", "truststore==0.10.5", "typing-extensions==4.16.0"),
    "typing-inspection==0.4.5",
)
# Such wheels as the root's glibc takes.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")


def recipe() -> str:
    return "\n".join([_PYTHON, *_PACKAGES])


def make(target: Path, downloads: Path) -> None:
    """Fills target/clients, a directory for sys.path."""
    machine = platform.machine()
    process.run(
        [
            *("pip3", "install", "--quiet", "--no-compile", "--no-deps"),
            *("--target", target / "clients"),
            *("--only-binary=:all:", f"--python-version={_PYTHON}", "--implementation=cp"),
            *(f"--platform={name}_{machine}" for name in _PLATFORMS),
            *_PACKAGES,
        ],
        hint="is PyPI in reach?",
    )
