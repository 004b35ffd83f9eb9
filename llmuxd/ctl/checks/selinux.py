# SPDX-License-Identifier: MIT
"""SELinux, where it enforces: what podman, CRIU and the containers need of it."""

from ...config import ModelConfig
from .look import Look
from .result import Result, fail, ok, skip, warn

_ENFORCE = "/sys/fs/selinux/enforce"
_BOOLEANS = "/sys/fs/selinux/booleans"
# Either lets a container use /dev/nvidia*, which are xserver_misc_device_t.
_DEVICES = ("container_use_xserver_devices", "container_use_devices")
_PODMAN = "container_runtime_exec_t"


def selinux(look: Look) -> Result | list[Result]:
    """It keeps nobody from what has to be done."""
    enforcing = look.host.read(_ENFORCE)
    if enforcing is None:
        return skip("selinux", "not on")
    if enforcing.strip() != "1":
        return ok("selinux", "permissive")
    found = [*_programs(look), *_containers(look)]
    return found or ok("selinux", "enforcing, with container-selinux")


def _programs(look: Look) -> list[Result]:
    """podman runs in its own domain, and CRIU knows how to talk to a process in another."""
    found = []
    podman = look.host.which("podman")
    if podman is not None and _type(look, podman) != _PODMAN:
        found.append(
            fail(
                "selinux",
                f"{podman} is {_type(look, podman) or 'without a label'}, not {_PODMAN}",
                f"install container-selinux, then restorecon -v {podman}",
            )
        )
    criu = look.host.read_bytes(look.host.which("criu") or "")
    if criu and b"libselinux.so" not in criu:
        found.append(
            fail(
                "selinux",
                "this CRIU was built without SELinux, which keeps it from the processes that it"
                " dumps (Unable to connect a transport socket)",
                "take the distribution's, or build it with libselinux",
            )
        )
    if "log-file" in look.criu_options:
        found.append(
            fail(
                "selinux",
                "with log-file among CRIU's options the process that it dumps may not write there,"
                " and every checkpoint fails",
                f"remove log-file from {look.criu_file}",
            )
        )
    return found


def _containers(look: Look) -> list[Result]:
    """Containers may use the devices and volumes that they are given."""
    if look.podman_value("host", "security", "selinuxEnabled") is False:
        return []
    confined = [model for model in look.models if _is_confined(model)]
    found = []
    given = any("nvidia" in device for model in confined for device in model.device_names)
    if given and look.has_gpu and not any(_is_on(look, name) for name in _DEVICES):
        found.append(
            warn(
                "selinux",
                "it may keep containers from the GPUs",
                f"setsebool -P {_DEVICES[0]} on, or --security-opt=label=disable in podman_args",
            )
        )
    for source in dict.fromkeys(path for model in confined for path in _unlabelled(model)):
        kind = _type(look, source)
        if kind and not kind.startswith("container_"):
            found.append(
                warn(
                    "selinux",
                    f"{source} is {kind}, which containers may not use",
                    "add ':z' to that volume, by which podman gives the files a label of its own",
                )
            )
    return found


def _is_confined(model: ModelConfig) -> bool:
    words = " ".join(model.podman_args)
    return not (model.unit or model.privileged or "label=disable" in words)


def _unlabelled(model: ModelConfig) -> list[str]:
    """The host's directories that it is given without `:z` or `:Z`."""
    parts = [volume.split(":") for volume in model.volumes]
    return [
        source
        for source, *rest in parts
        if source.startswith("/") and not {"z", "Z"} & set(",".join(rest[1:]).split(","))
    ]


def _is_on(look: Look, name: str) -> bool:
    return (look.host.read(f"{_BOOLEANS}/{name}") or "").startswith("1")


def _type(look: Look, path: str) -> str:
    """The type in a file's label; empty where it has none."""
    label = look.host.run(["stat", "--dereference", "--format=%C", "--", path])
    parts = label.out.strip().split(":")
    return parts[2] if label.status == 0 and len(parts) > 2 else ""
