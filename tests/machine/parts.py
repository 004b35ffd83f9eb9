# SPDX-License-Identifier: MIT
"""All that a machine is made of: the root, and the images and models that it can do without."""

from collections.abc import Sequence

from . import cache, host, models, process, root, store
from .errors import MachineError, Unavailable


def build(only: Sequence[str] | None = None) -> None:
    """Builds what is missing: the root, and the optional parts of these names, or all of them."""
    host.require_root()
    host.install_tools()
    root.entry().build()
    parts = optional()
    for name in only or ():
        if name not in parts:
            raise MachineError(f"nothing is called {name}", f"there are {', '.join(parts)}")
    for name, entry in parts.items():
        if only is None or name in only:
            _build_or_skip(name, entry)
    for entry in (root.entry(), *parts.values()):
        entry.prune()


def optional() -> dict[str, cache.Entry]:
    """Images before models: some of these are made with an image's tools."""
    return {**store.entries(), **models.entries()}


def _build_or_skip(name: str, entry: cache.Entry) -> None:
    try:
        entry.build()
    except Unavailable as error:
        process.say(f"{name}: skipped: {error}")
