# SPDX-License-Identifier: MIT
"""What everything else stands on: root, systemd, cgroups, podman and the configuration."""

import re

from ...errors import ConfigInvalid
from ...model import init
from .host import dotted, version
from .look import Look
from .result import Result, fail, ok, warn

SYSTEMD_MINIMUM = 246
# CDI devices, netavark giving a restored container its address back (4.1), and a name of ours for
# a network's bridge.
PODMAN_MINIMUM = (4, 5)
_UNIFIED = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line"


def root(look: Look) -> Result:
    """Everything here is done as root."""
    if look.host.is_root():
        return ok("root", "yes")
    return fail("root", "only root can see what has to be checked", "sudo llmuxctl check")


def systemd(look: Look) -> Result:
    """A systemd that runs this host and can freeze units."""
    done = look.host.run(["systemctl", "--version"])
    number = version(done.out)
    if done.status != 0 or not number:
        return fail("systemd", f"no systemd here ({done.reason})", "use a host that systemd runs")
    if not look.host.exists("/run/systemd/system"):
        return fail(
            "systemd", "installed, but it is not what runs this host", "boot this host with systemd"
        )
    if number[0] < SYSTEMD_MINIMUM:
        return fail(
            "systemd",
            f"{number[0]} cannot freeze units",
            f"update to {SYSTEMD_MINIMUM} or newer",
        )
    return ok("systemd", str(number[0]))


def cgroups(look: Look) -> Result:
    """Cgroups of version 2, in which systemd freezes units."""
    mounts = re.findall(
        r"^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2 ",
        look.host.read("/proc/self/mountinfo") or "",
        re.MULTILINE,
    )
    older = ", ".join(look.version_1)
    if "/sys/fs/cgroup" in mounts:
        beside = f", and of version 1 beside it ({older})" if older else ""
        return ok("cgroups", f"version 2{beside}")
    if mounts:
        return warn(
            "cgroups",
            f"hybrid (version 2 only at {mounts[0]}): units cannot be frozen, so nothing can park",
            _UNIFIED,
        )
    return fail("cgroups", "version 1 only: podman cannot split a unit's cgroup", _UNIFIED)


def podman(look: Look) -> Result:
    """A podman that works for root and is new enough."""
    if look.host.which("podman") is None:
        return fail("podman", "not installed", f"install podman {dotted(PODMAN_MINIMUM)} or newer")
    if not look.podman:
        return fail(
            "podman", f"does not work: {look.podman_info.reason}", "make 'podman info' work first"
        )
    text = look.podman_text("version", "Version")
    number = version(text)
    if look.podman_value("host", "serviceIsRemote"):
        return fail(
            "podman",
            f"{text} talks to another host's service",
            "remove the remote connection from containers.conf (podman system connection list)",
        )
    if look.podman_value("host", "security", "rootless"):
        return fail(
            "podman", f"{text} runs rootless, where it cannot checkpoint", "run podman as root"
        )
    if not number or number < PODMAN_MINIMUM:
        return fail(
            "podman",
            f"{text or 'of unknown version'} cannot restore a container with its devices and"
            " address, or not name its bridge",
            f"update podman to {dotted(PODMAN_MINIMUM)} or newer",
        )
    backend = look.podman_text("host", "networkBackend")
    if backend == "cni":
        return warn(
            "podman",
            f"{text}, rootful, with CNI, where restored containers can lose their network",
            'install netavark and set network_backend = "netavark" in containers.conf',
        )
    return ok("podman", ", ".join(filter(None, (text, "rootful", backend, _init(look)))))


def _init(look: Look) -> str:
    """A fifth of vLLM's way back, and nothing is wrong without it (model/init.py)."""
    places = (f"{place}/{init.NAME}" for place in init.PLACES)
    found = look.host.which(init.NAME) or any(map(look.host.glob, places))
    return init.NAME if found else f"without {init.NAME}"


def configuration(look: Look) -> Result:
    """llmux.yaml can be read."""
    found = look.configuration
    if not isinstance(found, ConfigInvalid):
        count = len(found.models)
        return ok("config", f"{look.config_path}: {count} model{'s' if count != 1 else ''}")
    if not look.host.exists(str(look.config_path)):
        return fail(
            "config",
            f"{look.config_path} does not exist",
            "write it (see README.md, Configuration)",
        )
    return fail(
        "config", found.message, found.hint_text or "correct it (see README.md, Configuration)"
    )
