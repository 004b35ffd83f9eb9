# SPDX-License-Identifier: MIT
"""NVIDIA's side: driver, checkpoint program, CRIU's plugin, and what containers see of it."""

import re
from typing import Any

import yaml

from ... import config
from ...model import seccomp
from ...model.identity import PLUGINS
from . import elf
from .change import AddLines, Run
from .host import version
from .look import Look
from .result import Result, fail, ok, skip, warn

_NO_GPU = "no NVIDIA GPU in this host"
# NVML processes, which PyTorch's are, and the checkpoint API of libcuda.
DRIVER_MINIMUM = (570,)
DRIVER_FIXED = (575, 57, 8)
_DRIVER_WANTED = "install driver 575.57.08 or newer"
PLUGIN = "cuda_plugin.so"
_CDI_PLACES = ("/etc/cdi", "/var/run/cdi")
_GENERATE = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
_SYSCTL = "/etc/sysctl.d/llmux.conf"
_NO_IO_URING = "kernel.io_uring_disabled=2"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def driver(look: Look) -> Result:
    """A driver that can suspend CUDA."""
    if not look.has_gpu:
        return skip("driver", _NO_GPU)
    text = look.driver
    if not text:
        return fail(
            "driver",
            "an NVIDIA GPU is here, but no driver is loaded",
            "install it, or modprobe nvidia",
        )
    number = version(text)
    if number < (550,):
        return fail("driver", f"{text} cannot checkpoint CUDA", _DRIVER_WANTED)
    if number < (555,):
        return fail(
            "driver",
            f"{text} can only toggle CUDA, CRIU's plugin needs 'cuda-checkpoint --action'",
            _DRIVER_WANTED,
        )
    if number < DRIVER_MINIMUM:
        return fail(
            "driver",
            f"{text} has no checkpoint API, and cannot checkpoint PyTorch",
            _DRIVER_WANTED,
        )
    if number < DRIVER_FIXED:
        return warn(
            "driver",
            f"{text} may fail on PyTorch with 'operation not supported'",
            _DRIVER_WANTED,
        )
    return ok("driver", text)


def libcuda(look: Look) -> Result:
    """The driver's library is the driver's own, and found without LD_LIBRARY_PATH."""
    if not look.driver:
        return skip("libcuda", _NO_GPU if not look.has_gpu else "no driver is loaded")
    if look.libraries is None:
        return skip("libcuda", "ldconfig does not show ld.so's cache")
    path = look.libraries.get("libcuda.so.1")
    if path is None:
        return fail(
            "libcuda",
            "libcuda.so.1 is not in ld.so's cache, the only place where a checkpoint finds it",
            "name its directory in /etc/ld.so.conf.d/nvidia.conf and run ldconfig",
        )
    place = path.rpartition("/")[0]
    files = look.host.glob(f"{place}/libcuda.so.[0-9][0-9][0-9].*")
    versions = [file.partition("libcuda.so.")[2] for file in files]
    if versions and look.driver not in versions:
        return fail(
            "libcuda",
            f"the library is {', '.join(versions)}, the loaded driver {look.driver}",
            "reboot, or unload and load the nvidia modules",
        )
    return ok("libcuda", path)


def gpus(look: Look) -> Result:
    """The GPUs that models are given exist, and are whole ones."""
    if not look.driver:
        return skip("gpus", _NO_GPU if not look.has_gpu else "no driver is loaded")
    done = look.host.run(
        ["nvidia-smi", "--query-gpu=index,name,mig.mode.current", "--format=csv,noheader"]
    )
    if done.status == 127:
        return skip("gpus", "there is no nvidia-smi to ask")
    if done.status != 0:
        return fail("gpus", f"nvidia-smi: {done.reason}", "make nvidia-smi work first")
    rows = [line.split(", ") for line in done.out.splitlines() if line.count(", ") >= 2]
    here = [row[0] for row in rows]
    for model in look.models:
        lost = [str(gpu) for gpu in model.gpus if str(gpu) not in here]
        if lost and model.devices is None:
            return fail(
                "gpus",
                f"{model.name} wants GPU {', '.join(lost)}, this host has {', '.join(here)}",
                f"correct its 'gpus:' in {look.config_path}",
            )
    split = [row[0] for row in rows if row[-1].strip() == "Enabled"]
    if split:
        return fail(
            "gpus",
            f"MIG is on for GPU {', '.join(split)}, and CUDA cannot be checkpointed there",
            f"nvidia-smi -i {','.join(split)} -mig 0",
        )
    return ok("gpus", ", ".join(f"{row[0]}: {row[1]}" for row in rows))


def io_uring(look: Look) -> Result:
    """Servers hold no io_uring, which CRIU cannot dump."""
    value = (look.host.read("/proc/sys/kernel/io_uring_disabled") or "").strip()
    if value == "2":
        return ok("io_uring", "kernel.io_uring_disabled=2")
    free = [model.name for model in look.models if _unconfined(model)]
    if _has_seccomp(look) and not free:
        return ok("io_uring", "seccomp keeps containers from it")
    who = f"{', '.join(free)} may" if free else "containers may"
    text = f"{who} use it, and what does cannot be checkpointed"
    if not look.has_gpu:
        return skip("io_uring", f"{text} (engines on GPUs do)")
    if not value:
        return warn("io_uring", text, "set UV_USE_IO_URING=0 in the model's env, or use seccomp")
    return warn(
        "io_uring",
        text,
        f"sysctl -w {_NO_IO_URING}, and the same in {_SYSCTL}",
        AddLines(_SYSCTL, ("# CRIU cannot dump io_uring.", _NO_IO_URING)),
        Run(("sysctl", "-w", _NO_IO_URING)),
    )


def cuda_checkpoint(look: Look) -> Result:
    """The program through which CRIU's plugin suspends CUDA."""
    if not look.has_gpu:
        return skip("cuda-checkpoint", _NO_GPU)
    path = look.host.which("cuda-checkpoint")
    if path is None:
        return fail(
            "cuda-checkpoint",
            "not in a unit's PATH; dumps would silently lack what is on the GPU",
            "install it into /usr/local/bin (github.com/NVIDIA/cuda-checkpoint)",
        )
    done = look.host.run([path, "-h"])
    if done.status != 0:
        return fail("cuda-checkpoint", f"{path} -h: {done.reason}", "install it anew")
    if "--action" not in done.text:
        return fail(
            "cuda-checkpoint",
            f"{path} has no --action, and CRIU's plugin then turns itself off",
            "install a newer one (github.com/NVIDIA/cuda-checkpoint)",
        )
    return ok("cuda-checkpoint", path)


def cuda_plugin(look: Look) -> Result:
    """CRIU's CUDA plugin is where CRIU looks, and fits it."""
    if not look.has_gpu:
        return skip("cuda plugin", _NO_GPU)
    place = _plugin_place(look)
    path = f"{place}/{PLUGIN}"
    build = f"build it from CRIU {'.'.join(map(str, look.criu)) or 'sources'} (make cuda_plugin)"
    if not look.host.exists(path):
        other = next((p for p in PLUGINS if look.host.exists(f"{p}/{PLUGIN}")), None)
        if other:
            return fail(
                "cuda plugin",
                f"{other}/{PLUGIN} is here, but CRIU looks in {place}",
                f"set libdir={other} in {look.criu_file}",
            )
        return fail("cuda plugin", f"{path} is missing; dumps would lack what is on the GPU", build)
    unknown = _misfits(look, path)
    if unknown:
        return fail(
            "cuda plugin",
            f"{path} is of another CRIU version (undefined symbol: {unknown[0]})",
            build,
        )
    return ok("cuda plugin", path)


def devices(look: Look) -> Result:
    """The devices that models are given are there, by file or by CDI name."""
    containers = [model for model in look.models if not model.unit]
    wanted = list(dict.fromkeys(name for model in containers for name in model.device_names))
    files = [name.partition(":")[0] for name in wanted if name.startswith("/")]
    lost = [path for path in files if not look.host.exists(path)]
    if lost:
        return fail(
            "devices",
            f"{', '.join(lost)} does not exist",
            "load the driver (nvidia-modprobe -u -c 0), or correct 'devices:'",
        )
    by_cdi = [name for name in wanted if not name.startswith("/")]
    if by_cdi:
        return _cdi(look, by_cdi)
    if files:
        return ok("devices", ", ".join(files))
    return skip("devices", "no model is given any")


def supported_cuda(look: Look) -> tuple[int, ...]:
    """The newest CUDA that the driver runs; empty where that is not known."""
    found = re.search(r"CUDA (?:UMD )?Version\s*:\s*([\d.]+)", look.host.run(["nvidia-smi"]).out)
    if found:
        return version(found[1])[:2]
    known = {570: (12, 8), 575: (12, 9), 580: (13, 0), 590: (13, 1)}
    number = version(look.driver)
    return next((cuda for major, cuda in known.items() if number[:1] == (major,)), ())


def _has_seccomp(look: Look) -> bool:
    enabled = bool(look.podman_value("host", "security", "seccompEnabled"))
    return enabled and any(look.host.exists(path) for path in seccomp.DEFAULTS)


def _unconfined(model: config.ModelConfig) -> bool:
    """Whether the seccomp profile that llmux-model gives each container is replaced by another."""
    return "seccomp=" in " ".join(model.podman_args)


def _plugin_place(look: Look) -> str:
    named = look.criu_options.get("libdir")
    built_in = re.search(r"plugin directory \(by default ([^)]+)\)", look.criu_help)
    place = named or (built_in[1] if built_in else PLUGINS[0])
    return place.rstrip("/")


def _misfits(look: Look, path: str) -> list[str]:
    """What the plugin expects CRIU to have and it has not; empty also where nobody can tell."""
    plugin = elf.symbols(look.host.read_bytes(path) or b"")
    criu = elf.symbols(look.host.read_bytes(look.host.which("criu") or "") or b"")
    if plugin is None or criu is None or not criu.offered:
        return []
    return sorted(plugin.expected - criu.offered)


def _cdi(look: Look, wanted: list[str]) -> Result:
    specs = _specs(look)
    if not look.has_gpu and not specs:
        return warn(
            "devices",
            f"models are given {', '.join(wanted)}, and {_NO_GPU}",
            "write 'devices: []' for models that need none",
        )
    named: set[str] = set()
    for path, text in specs.items():
        try:
            named |= _cdi_names(yaml.load(text, Loader=_Loader))
        except (yaml.YAMLError, ValueError) as error:
            return fail(
                "devices", f"{path} cannot be read: {str(error).splitlines()[0]}", _GENERATE
            )
    lost = ", ".join(name for name in wanted if name not in named)
    if lost:
        text = f"{lost} is not in {', '.join(specs)}" if specs else f"no CDI file names {lost}"
        return fail("devices", text, f"{_GENERATE}, or correct 'gpus:' in {look.config_path}")
    for path, text in specs.items():
        others = set(re.findall(r"\.so\.(\d{3}\.\d+(?:\.\d+)?)\b", text)) - {look.driver}
        if look.driver and others:
            return fail(
                "devices",
                f"{path} is for driver {', '.join(sorted(others))}, loaded is {look.driver}",
                _GENERATE,
            )
    return ok("devices", ", ".join(wanted))


def _specs(look: Look) -> dict[str, str]:
    places = look.podman_value("host", "cdiSpecDirs") or _CDI_PLACES
    paths = [
        path
        for place in places
        for suffix in ("yaml", "yml", "json")
        for path in look.host.glob(f"{place}/*.{suffix}")
    ]
    texts = {path: look.host.read(path) for path in paths}
    return {path: text for path, text in texts.items() if text is not None}


def _cdi_names(spec: Any) -> set[str]:
    if not isinstance(spec, dict) or not isinstance(spec.get("devices"), list):
        raise ValueError("no list of devices in it")
    return {
        f"{spec.get('kind')}={device.get('name')}"
        for device in spec["devices"]
        if isinstance(device, dict)
    }
