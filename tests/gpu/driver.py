# SPDX-License-Identifier: MIT
"""The NVIDIA driver of this host: its nodes and libraries for the machine, and its CDI file.

On users' hosts nvidia-ctk writes /etc/cdi/nvidia.yaml; this does what is needed of it where there
is no nvidia-ctk, for the driver that is found.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.machine.errors import MachineError

# Where some hosts (GKE's nodes, say) have all of the driver's files by themselves.
_APART = Path("/usr/local/nvidia")
_PLACE = "usr/local/nvidia/lib64"
# What computes and what compiles for it; ld.so and libcuda ask for these names.
_LIBRARIES = (
    *("libcuda.so.1", "libcudadebugger.so.1", "libnvidia-ml.so.1", "libnvidia-nvvm.so.4"),
    *("libnvidia-ptxjitcompiler.so.1", "libnvidia-gpucomp.so.{version}"),
)
_IN_CONTAINER = "/usr/lib/x86_64-linux-gnu"


def present() -> bool:
    """Whether this host has a GPU with NVIDIA's driver loaded."""
    return Path("/proc/driver/nvidia/version").exists()


def version() -> str:
    """As "580.159.04"."""
    text = Path("/proc/driver/nvidia/version").read_text()
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    if found is None:
        raise MachineError(f"this does not name the driver's version: {text!r}")
    return found[1]


def nodes() -> list[str]:
    """The names in /dev."""
    return sorted(
        path.name
        for path in Path("/dev").glob("nvidia*")
        if path.is_char_device() and not path.name.startswith("nvidia-cap")
    )


def install(root: Path) -> dict[str, tuple[Path, str]]:
    """Put the driver's files into the machine's root; what is to be bound there as well."""
    conf = root / "etc/ld.so.conf.d/nvidia.conf"
    conf.parent.mkdir(exist_ok=True)
    conf.write_text(f"/{_PLACE}\n")
    smi = shutil.which("nvidia-smi")
    if (_APART / "lib64/libcuda.so.1").exists():
        link = root / "usr/bin/nvidia-smi"
        link.unlink(missing_ok=True)
        link.symlink_to(_APART / "bin/nvidia-smi")
        return {str(_APART): (_APART, "ro")}
    place = root / _PLACE
    place.mkdir(parents=True, exist_ok=True)
    for name, path in _libraries().items():
        shutil.copy(path, place / path.name)
        if name != path.name:
            (place / name).symlink_to(path.name)
    if smi:
        shutil.copy(Path(smi).resolve(), root / "usr/bin/nvidia-smi")
    return {}


def write_cdi(root: Path) -> None:
    """Write the machine's CDI file. Its paths are the machine's: run after `install`."""
    mounts = [
        {
            "hostPath": f"/{_PLACE}/{path.name}",
            "containerPath": f"{_IN_CONTAINER}/{name}",
            "options": ["ro", "nosuid", "nodev", "bind"],
        }
        for name, path in _libraries().items()
    ]
    common = [f"/dev/{name}" for name in nodes() if not re.fullmatch(r"nvidia\d+", name)]
    gpus = sorted(name.removeprefix("nvidia") for name in nodes() if name[6:].isdigit())
    spec: dict[str, Any] = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            {
                "name": gpu,
                "containerEdits": {"deviceNodes": [{"path": f"/dev/nvidia{gpu}"}]},
            }
            for gpu in gpus
        ],
        "containerEdits": {
            "deviceNodes": [{"path": path} for path in common],
            "mounts": mounts,
        },
    }
    path = root / "etc/cdi/nvidia.yaml"
    path.parent.mkdir(exist_ok=True)
    # JSON is YAML.
    path.write_text(json.dumps(spec, indent=1) + "\n")


def _libraries() -> dict[str, Path]:
    """The real file of each library, by the name that programs ask for."""
    cache = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found: dict[str, Path] = {}
    for name in (name.format(version=version()) for name in _LIBRARIES):
        paths = re.findall(rf"^\s*{re.escape(name)} \(libc6,x86-64.*=> (.*)$", cache, re.MULTILINE)
        real = [Path(path).resolve() for path in paths]
        # Forward-compatibility packages have a libcuda of another driver than the one loaded.
        fitting = [path for path in real if path.name.endswith(version())]
        if fitting:
            found[name] = fitting[0]
    if "libcuda.so.1" not in found:
        raise MachineError(f"no libcuda of driver {version()} in ld.so's cache", "ldconfig -p")
    return found
