# SPDX-License-Identifier: MIT
"""All that must be the same where an image is restored as where it was taken.

What was measured of a model holds for as long as this does, too (tuning.py).
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..config import CONTAINER_FORM
from .process import CommandFailed, program, run

FORM = str(CONTAINER_FORM)
# Where CRIU looks for its plugins, by distribution; crun.conf's libdir names one of them.
PLUGINS = ("/usr/lib/criu", "/usr/lib64/criu", "/usr/libexec/criu", "/usr/local/lib/criu")
CDI = ("/etc/cdi", "/var/run/cdi")
NVIDIA = "/proc/driver/nvidia"
CARD = "/dev/nvidia"
QUERY_TIMEOUT = 30.0

_WORDS = {
    "image_id": "the container image",
    "machine_id": "the machine",
    "kernel": "the kernel",
    "criu": "CRIU",
    "driver": "the NVIDIA driver",
    "gpus": "the host's GPUs",
    "plugin": "CRIU's CUDA plugin",
    "cuda_checkpoint": "cuda-checkpoint",
    "cdi": "the CDI specification of the GPUs",
}


@dataclass(frozen=True)
class Identity:
    """Texts to compare: versions, ids, or hashes. Those from `driver` on are of models with a GPU.

    CDI names the driver's files by version, and the plugin calls cuda-checkpoint: an image made
    with others is refused by them late, or restored without its GPU state. `container_form` is
    config.CONTAINER_FORM of the llmuxd that made the container, which is in `definition` too; empty
    where nobody has written it down.
    """

    definition: str
    image_id: str
    machine_id: str
    kernel: str
    criu: str
    driver: str = ""
    gpus: str = ""
    plugin: str = ""
    cuda_checkpoint: str = ""
    cdi: str = ""
    container_form: str = ""

    def difference(self, other: "Identity") -> str | None:
        """What changed from this to `other`, in words; None where nothing did."""
        changed = [
            f"{text} changed"
            for key, text in _WORDS.items()
            if getattr(self, key) != getattr(other, key)
        ]
        redefined = self.redefined(other.definition, other.container_form)
        return ", ".join([redefined, *changed] if redefined else changed) or None

    def redefined(self, definition: str, container_form: str = FORM) -> str | None:
        """Why it is not the image of a container of that definition and form; None where it is."""
        changed = "the model's definition in llmux.yaml changed"
        other = "it was taken by an llmuxd that made containers in another form"
        forms = self.container_form, container_form
        if "" not in forms and self.container_form != container_form:
            return f"{other} ({self.container_form}, not {container_form})"
        if self.definition == definition:
            return None
        return f"{other}, or {changed}" if "" in forms else changed

    @property
    def is_foreign(self) -> bool:
        """Whether it is certain that only another release's llmuxd can restore it."""
        return self.container_form not in ("", FORM)


def here(
    definition: str, image_id: str, devices: Iterable[str], container_form: str = FORM
) -> Identity:
    """The identity of an image that would be taken now, of a container with these devices."""
    common = Identity(
        definition=definition,
        container_form=container_form,
        image_id=image_id,
        machine_id=_text(Path("/etc/machine-id")).strip(),
        kernel=os.uname().release,
        criu=_criu_version(),
    )
    if not any("nvidia" in device for device in devices):
        return common
    return Identity(
        **vars(common)
        | {
            "driver": _text(Path(NVIDIA, "version")).partition("\n")[0],
            "gpus": _gpus(Path(NVIDIA, "gpus")),
            "plugin": _hash(Path(place, "cuda_plugin.so") for place in PLUGINS),
            "cuda_checkpoint": _hash([program("cuda-checkpoint")]),
            "cdi": _hash(path for place in CDI for path in sorted(Path(place).glob("*nvidia*"))),
        }
    )


def of_json(raw: object) -> Identity | None:
    """What `asdict` gave; None for anything else."""
    if not isinstance(raw, dict):
        return None
    try:
        return Identity(**{str(key): str(value) for key, value in raw.items()})
    except TypeError:
        return None


def _criu_version() -> str:
    """CRIU's version as it prints it, one line; empty where there is none."""
    try:
        path = program("criu")
        if not _is_binary(path):
            return _ask_criu()
        found = path.stat()
        this = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]
        told = files.read_json(_criu()) or {}
        if told.get("program") != this:
            told = {"program": this, "version": _ask_criu()}
            with contextlib.suppress(OSError):
                files.write_json(_criu(), told)
        return str(told.get("version", ""))
    except (OSError, CommandFailed):
        return ""


def _ask_criu() -> str:
    return " ".join(run(["criu", "--version"], QUERY_TIMEOUT).split())


def _is_binary(path: Path) -> bool:
    """A script may run another program by tomorrow."""
    with path.open("rb") as program:
        return program.read(4) == b"\x7fELF"


def _criu() -> Path:
    """What that very program said of its version: each start would wait for it to say so again."""
    return files.runtime_root() / "criu.json"


def _gpus(directory: Path) -> str:
    """`MODEL UUID` of each card, in the order of their places on the bus."""
    found = []
    for path in sorted(directory.glob("*/information")):
        told = _facts(path)
        if "?" in told.get("GPU UUID", ""):
            # Of many a card the driver knows it only once somebody has opened it since the boot.
            with contextlib.suppress(OSError):
                os.close(os.open(CARD + told.get("Device Minor", ""), os.O_RDWR | os.O_CLOEXEC))
            told = _facts(path)
        found.append(f"{told.get('Model', '')} {told.get('GPU UUID', '')}")
    return ", ".join(found)


def _facts(information: Path) -> dict[str, str]:
    lines = [line.partition(":") for line in _text(information).splitlines()]
    return {key.strip(): value.strip() for key, _, value in lines}


def _hash(paths: Iterable[Path]) -> str:
    """One hash of the files of `paths` that are there; empty where none is."""
    contents = [path.read_bytes() for path in paths if path.is_file()]
    return hashlib.sha256(b"".join(contents)).hexdigest() if contents else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
