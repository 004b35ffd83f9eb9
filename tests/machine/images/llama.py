# SPDX-License-Identifier: MIT
"""llama.cpp's server as Debian packages it, on the CPU."""

from pathlib import Path

from .. import debian

NAME = "localhost/llmux-llama:latest"
CHANGES = [
    'ENTRYPOINT ["/usr/bin/llama-server", "--host", "0.0.0.0", "--port", "8000"]',
    "EXPOSE 8000",
]

_SUITE = "forky"
_PACKAGES = ("llama.cpp-tools",)
# The backend for processors with AMX. A process asks the kernel for the leave to use that, which
# CRIU doesn't restore: a restored server would die of SIGILL at its next token. Without it the
# next best backend is loaded.
_AMX = "usr/lib/*/ggml/backends*/libggml-cpu-sapphirerapids.so"


def recipe() -> str:
    return "\n".join([_SUITE, *_PACKAGES, _AMX])


def rootfs(target: Path, downloads: Path) -> None:
    debian.bootstrap(target, _SUITE, _PACKAGES)
    for backend in target.glob(_AMX):
        backend.unlink()
