# SPDX-License-Identifier: MIT
"""The parts: the slimmed root and vLLM's image as compressed archives, cut to what travels."""

import subprocess
from pathlib import Path

from tests.machine import cache, process, store
from tests.machine.errors import MachineError

from . import image, slim

# Where only so much goes at a time, each part goes by itself.
PART_SIZE = 60 << 20
NAMES = ("root", "vllm")
_THREADS = 2


def entries() -> dict[str, cache.Entry]:
    """What is packed, by the name of its archive."""
    return {"root": slim.entry(), "vllm": store.entry("vllm-gpu", image)}


def entry(name: str) -> cache.Entry:
    """A directory with the parts of one archive: NAME.tar.xz.00 and on."""
    packed = entries()[name]
    recipe = f"{packed.kind}\n{packed.recipe}\n{PART_SIZE}"
    return cache.Entry(f"gpu/parts-{name}", recipe, lambda target: _pack(name, packed, target))


def build() -> list[Path]:
    """Every part of both archives, in order."""
    return [part for name in NAMES for part in sorted(entry(name).build().iterdir())]


def unpack(name: str, places: list[Path], target: Path) -> None:
    """The reverse of pack, from parts that lie in any of these directories."""
    parts = sorted(_parts(name, places).values())
    if not parts:
        raise MachineError(f"no {name}.tar.xz.00 in {', '.join(map(str, places))}")
    target.mkdir(parents=True, exist_ok=True)
    with (
        process.step(f"unpacking {name}"),
        subprocess.Popen(["cat", *map(str, parts)], stdout=subprocess.PIPE) as whole,
    ):
        process.run(
            ["tar", "--extract", "--xz", "--numeric-owner", f"--directory={target}"],
            stdin=whole.stdout or subprocess.DEVNULL,
        )


def is_here(name: str, places: list[Path]) -> bool:
    """Whether its parts are in these directories; where it has several, they come together."""
    return bool(_parts(name, places))


def _parts(name: str, places: list[Path]) -> dict[str, Path]:
    return {path.name: path for place in places for path in place.glob(f"{name}.tar.xz.*")}


def _pack(name: str, packed: cache.Entry, target: Path) -> None:
    source = packed.build()
    with process.step(f"packing {name}"):
        script = (
            'tar --create --numeric-owner --sort=name --directory="$1" . '
            '| xz -9 --threads="$2" --block-size=268435456 '
            '| split --bytes="$3" --numeric-suffixes --suffix-length=2 - "$4"'
        )
        arguments: list[str | Path] = [
            source,
            str(_THREADS),
            str(PART_SIZE),
            target / f"{name}.tar.xz.",
        ]
        process.run(["bash", "-euo", "pipefail", "-c", script, "pack", *arguments])
