# SPDX-License-Identifier: MIT
"""The container images of the machine, a module each.

Every module here that is not underscored and has these four names is an image; its short name
is the module's.

    NAME: str             what podman calls it, e.g. "localhost/llmux-fake:latest"
    CHANGES: list[str]    what "podman import --change" gets, e.g. 'ENTRYPOINT ["/bin/server"]'
    recipe() -> str       a text that changes when the image would: the key in the cache
    rootfs(target: Path, downloads: Path) -> None
                          fills target, an empty directory, with the root file system;
                          downloads outlives builds, is shared, and may be empty

rootfs() may raise Unavailable("why"): the image is skipped, and one line says so.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol


class Image(Protocol):
    NAME: str
    CHANGES: list[str]

    def recipe(self) -> str: ...

    def rootfs(self, target: Path, downloads: Path) -> None: ...


def find() -> dict[str, Image]:
    """Every image there is a module for, by short name."""
    found: dict[str, Image] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if hasattr(module, "rootfs"):
            found[info.name] = module
    return found
