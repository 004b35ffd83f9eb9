# SPDX-License-Identifier: MIT
"""What the configured models need: their images, and room for their checkpoints."""

import json
import re
from pathlib import Path
from typing import Any

from ... import files, names
from .. import table
from .gpu import supported_cuda
from .host import Version, dotted, version
from .look import Look
from .result import Result, fail, ok, skip, warn

GIB = 1 << 30
# Until a model has been dumped once nobody knows; 26 GiB and 2.5 GB have been seen.
GUESS_GPU = 30 * GIB
GUESS_CPU = 4 * GIB


def images(look: Look) -> list[Result]:
    """Each image is here, and its CUDA is one that the driver runs."""
    models = [model for model in look.models if not model.unit]
    if not models:
        return [skip("image", "no model that needs one is configured")]
    if not look.podman:
        return [skip("image", "podman does not work")]
    cuda = supported_cuda(look) if look.driver else ()
    return [_image(look, image, cuda) for image in dict.fromkeys(m.image for m in models)]


def disk(look: Look) -> Result:
    """The checkpoints of all models find room."""
    place = look.podman_text("store", "graphRoot")
    if not place:
        return skip("disk", "podman does not say where it keeps checkpoints")
    free = look.host.disk_free(place)
    if free is None:
        return warn("disk", f"the free space of {place} is not known", f"df {place}")
    models = [model for model in look.models if model.checkpoint]
    sizes = {model.name: _recorded(look, model.name) for model in models}
    # The old dump of a model is removed before the new one is written: both are never there.
    occupied = sum(size for size, there in sizes.values() if there)
    unknown = [name for name, (size, _) in sizes.items() if not size]
    guess = GUESS_GPU if look.has_gpu else GUESS_CPU
    needed = sum(size for size, _ in sizes.values()) + guess * len(unknown)
    by = f"{len(models)} checkpoint{'s' if len(models) != 1 else ''} take{'s' * (len(models) == 1)}"
    text = f"{by} {_size(needed)}"
    if unknown:
        text += f" (a guess for {len(unknown)}: {_size(guess)} each)"
    text += f", {place} has {_size(free + occupied)} for them"
    hint = f"free some space in {place}, or set 'checkpoint: false' for some models"
    if needed <= free + occupied:
        return ok("disk", text)
    if free < GIB:
        return fail("disk", text, hint)
    return warn("disk", text, hint)


def _image(look: Look, image: str, cuda: Version) -> Result:
    done = look.host.run(["podman", "image", "inspect", image])
    if done.status != 0 and re.search(r"image not known|no such image", done.text):
        return fail("image", f"{image} is not here", _fetch(image))
    try:
        found = json.loads(done.out)[0] if done.status == 0 else None
    except (ValueError, LookupError):
        found = None
    if not isinstance(found, dict):
        return fail("image", f"{image}: {done.reason}", f"podman image inspect {image}")
    needs = _cuda(found)
    if not (needs and cuda):
        return ok("image", f"{image}{f', CUDA {dotted(needs)}' if needs else ''}")
    words = f"{image} has CUDA {dotted(needs)}, driver {look.driver} runs {dotted(cuda)}"
    hint = f"install a newer driver, or use an image for CUDA {dotted(cuda)}"
    if needs[0] > cuda[0]:
        return fail("image", words, hint)
    if needs > cuda:
        return warn("image", f"{words}: what it compiles at run time may fail", hint)
    return ok("image", f"{image}, CUDA {dotted(needs)}")


def _fetch(image: str) -> str:
    if image.startswith("localhost/"):
        return f"build it, or load it (podman load), as {image}"
    return f"podman pull {image}  (a start would pull it too, and run out of time)"


def _cuda(found: dict[str, Any]) -> Version:
    """The CUDA version that the image has, by its environment or its labels."""
    settings = found.get("Config") or {}
    env = dict(item.partition("=")[::2] for item in settings.get("Env") or [])
    labels = found.get("Labels") or settings.get("Labels") or {}
    for said in (env.get("CUDA_VERSION"), labels.get("com.nvidia.cuda.version")):
        if said and version(said):
            return version(said)[:2]
    required = re.search(r"cuda>=([\d.]+)", env.get("NVIDIA_REQUIRE_CUDA") or "")
    return version(required[1])[:2] if required else ()


def _recorded(look: Look, model: str) -> tuple[int, bool]:
    """The size of the model's last dump (0: never dumped), and whether it is still there."""
    path = Path(files.STATE_DIRECTORY, "checkpoints", f"{names.slug(model)}.json")
    try:
        record = json.loads(look.host.read(str(path)) or "")
        size = int(record["size"])
        there = look.host.exists(f"{record['directory']}/inventory.img")
    except (ValueError, TypeError, LookupError):
        return 0, False
    return max(size, 0), there


def _size(number: int) -> str:
    return table.size(number) if number else "nothing"
