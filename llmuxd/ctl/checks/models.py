# SPDX-License-Identifier: MIT
"""The container images of the configured models."""

import json
import re
from typing import Any

from ...config import ModelConfig
from ...model import caches
from .gpu import supported_cuda
from .host import Version, dotted, version
from .look import Look
from .result import Result, fail, ok, skip, warn


def images(look: Look) -> list[Result]:
    """Each image is here, and its CUDA is one that the driver runs."""
    models = [model for model in look.models if not model.unit]
    if not models:
        return [skip("image", "no model that needs one is configured")]
    if not look.podman:
        return [skip("image", "podman does not work")]
    cuda = supported_cuda(look) if look.driver else ()
    by_image: dict[str, list[ModelConfig]] = {}
    for model in models:
        by_image.setdefault(model.image, []).append(model)
    return [_image(look, image, users, cuda) for image, users in by_image.items()]


def _image(look: Look, image: str, models: list[ModelConfig], cuda: Version) -> Result:
    done = look.host.run(["podman", "image", "inspect", image])
    if done.status != 0 and re.search(r"image not known|no such image", done.text):
        return fail("image", f"{image} is not here", _fetch(image))
    try:
        found = json.loads(done.out)[0] if done.status == 0 else None
    except (ValueError, LookupError):
        found = None
    if not isinstance(found, dict):
        return fail("image", f"{image}: {done.reason}", f"podman image inspect {image}")
    home = _home(found)
    homeless = [m.name for m in models if m.is_read_only and "HOME" not in dict(m.env)]
    if home != caches.HOME and homeless:
        return warn(
            "image",
            f"{image} has its server's home at {home}, which {homeless[0]} cannot write to",
            "set HOME in the model's env to that directory, or read_only: false",
        )
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


def _home(found: dict[str, Any]) -> str:
    """The home of the server's user, or words for that; podman reads the image's passwd for it."""
    settings = found.get("Config") or {}
    env = dict(item.partition("=")[::2] for item in settings.get("Env") or [])
    user = str(settings.get("User") or "root").partition(":")[0]
    own = caches.HOME if user in ("root", "0") else f"that of user {user}"
    return env.get("HOME") or own


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
