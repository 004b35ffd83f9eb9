# SPDX-License-Identifier: MIT
"""The images of the machines, imported once into image stores that podman reads only.

Each image has a store of its own, so that one is built, replaced or left out without the others.
"""

import json
import subprocess
from pathlib import Path

from . import cache, chroot, images, process, root
from .errors import MachineError

# Where a machine has the stores.
THERE = "/var/lib/llmux-images"

# A change of how images are imported makes them anew.
_IMPORT = "import 1"


def entries() -> dict[str, cache.Entry]:
    """A store for every image that has a module, by its short name."""
    return {name: entry(name, image) for name, image in images.find().items()}


def entry(name: str, image: images.Image) -> cache.Entry:
    """The store of one image; its short name says where it is kept."""
    recipe = "\n".join([_IMPORT, image.NAME, *image.CHANGES, image.recipe()])
    return cache.Entry(f"images/{name}", recipe, lambda target: _fill(name, image, target))


def rootfs(store: Path) -> Path:
    """The image's root file system as it lies in its store."""
    layers = list(store.glob("overlay/*/diff"))
    if len(layers) != 1:
        raise MachineError(f"{store} has {len(layers)} layers, not one", f"rm -r {store}")
    return layers[0]


def configuration(names: list[str]) -> str:
    """storage.conf of a machine that has these stores."""
    stores = json.dumps([f"{THERE}/{name}" for name in names])
    return f"""[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"

[storage.options]
additionalimagestores = {stores}
"""


def _fill(name: str, image: images.Image, target: Path) -> None:
    system, scratch = target / "rootfs", target / "scratch"
    system.mkdir()
    scratch.mkdir()
    with process.step(f"image {name}: root file system"):
        image.rootfs(system, cache.downloads())
    with process.step(f"image {name}: podman import"):
        _import(image, system, target, scratch)
    for path in (system, scratch):
        cache.remove(path)


def _import(image: images.Image, system: Path, store: Path, scratch: Path) -> None:
    """Streams the root file system into podman, the one of the machine's own root."""
    changes = [f"--change={change}" for change in image.CHANGES]
    podman = ["podman", "--root=/store", "--runroot=/run/store", "--storage-driver=overlay"]
    tar = subprocess.Popen(
        ["tar", "--create", "--file=-", "--numeric-owner", f"--directory={system}", "."],
        stdout=subprocess.PIPE,
    )
    with tar:
        chroot.run(
            root.entry().build(),
            [*podman, "import", "--quiet", *changes, "-", image.NAME],
            binds={"/store": store, "/var/tmp": scratch},
            stdin=tar.stdout,
        )
    if tar.returncode:
        raise MachineError(f"tar of {system} failed with exit status {tar.returncode}")
