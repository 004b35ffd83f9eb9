# SPDX-License-Identifier: MIT
"""The fake engine: what tests tell to be slow, wrong, big or dead."""

import shutil
from pathlib import Path

from .. import debian

NAME = "localhost/llmux-fake:latest"
CHANGES = ['ENTRYPOINT ["/usr/bin/python3", "-B", "/fake_engine.py"]', "EXPOSE 8000"]

_SUITE = "forky"
_PACKAGES = ("python3",)
_ENGINE = Path(__file__).with_name("fake_engine.py")


def recipe() -> str:
    return "\n".join([_SUITE, *_PACKAGES, _ENGINE.read_text()])


def rootfs(target: Path, downloads: Path) -> None:
    debian.bootstrap(target, _SUITE, _PACKAGES)
    shutil.copy(_ENGINE, target / "fake_engine.py")
