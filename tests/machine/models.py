# SPDX-License-Identifier: MIT
"""The models' weights, made once and bound into machines at /srv/models, a directory each.

A module that makes some has recipe() -> str, which changes when they would, and
make(target: Path, downloads: Path), which fills target with directories named like the models.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Protocol, cast

from . import cache, process

# weights: models of random weights for vLLM.
_MAKERS = ("clients", "gemma", "weights")


class Maker(Protocol):
    def recipe(self) -> str: ...

    def make(self, target: Path, downloads: Path) -> None: ...


def entries() -> dict[str, cache.Entry]:
    """An entry for every module here that makes models, by the module's name."""
    modules = {name: f"{__package__}.{name}" for name in _MAKERS}
    return {
        name: _entry(name, cast(Maker, importlib.import_module(module)))
        for name, module in modules.items()
        if importlib.util.find_spec(module)
    }


def built() -> list[Path]:
    """The models there are, a directory each."""
    places = [entry.place for entry in entries().values() if entry.is_built]
    return [model for place in places for model in sorted(place.iterdir())]


def _entry(name: str, maker: Maker) -> cache.Entry:
    def fill(target: Path) -> None:
        with process.step(f"models {name}"):
            maker.make(target, cache.downloads())

    return cache.Entry(f"models/{name}", maker.recipe(), fill)
