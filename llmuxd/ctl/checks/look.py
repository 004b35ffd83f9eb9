# SPDX-License-Identifier: MIT
"""What several checks need to know of the host, looked up once."""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from ... import config
from ...errors import ConfigInvalid
from . import criu_conf
from .host import Done, Host, Version, version


class Look:
    """One round of checks on one host."""

    def __init__(self, host: Host, config_path: Path):
        self.host = host
        self.config_path = config_path

    @cached_property
    def configuration(self) -> config.Config | ConfigInvalid:
        """llmux.yaml, or what is wrong with it."""
        text = self.host.read(str(self.config_path))
        if text is None:
            return ConfigInvalid(f"{self.config_path} cannot be read")
        try:
            return config.parse(text, self.config_path)
        except ConfigInvalid as error:
            return error

    @property
    def models(self) -> list[config.ModelConfig]:
        """The configured models; none where the configuration is not valid."""
        if isinstance(self.configuration, ConfigInvalid):
            return []
        return list(self.configuration.models.values())

    def unit_property(self, name: str, unit: str) -> str:
        """What systemd says of a unit; empty where it says nothing."""
        return self.host.run(["systemctl", "show", "-P", name, unit]).out.strip()

    @cached_property
    def podman_info(self) -> Done:
        """What `podman info` answered."""
        return self.host.run(["podman", "info", "--format", "json"])

    @cached_property
    def podman(self) -> dict[str, Any]:
        """The same, read; empty where podman does not answer."""
        try:
            value = json.loads(self.podman_info.out) if self.podman_info.status == 0 else {}
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def podman_value(self, *keys: str) -> Any:
        """One value of it by its path of keys; None where there is none."""
        value: Any = self.podman
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def podman_text(self, *keys: str) -> str:
        """The same for a text, which is empty where there is none."""
        value = self.podman_value(*keys)
        return value if isinstance(value, str) else ""

    @cached_property
    def criu(self) -> Version:
        """CRIU's version; empty where there is no CRIU."""
        # Without that option it reads its default file even for this, and dies of a mistake there.
        done = self.host.run(["criu", "--no-default-config", "--version"])
        return version(done.out.partition("Version:")[2]) if done.status == 0 else ()

    @cached_property
    def criu_help(self) -> str:
        """What CRIU says of its own options."""
        return self.host.run(["criu", "--help"]).text

    @property
    def kernel(self) -> Version:
        """The kernel's version, without what distributions append."""
        return version(self.host.kernel())

    @property
    def runtime(self) -> str:
        """The name of the OCI runtime that podman uses."""
        return self.podman_text("host", "ociRuntime", "name")

    @property
    def runtime_version(self) -> Version:
        """Its version; empty where it does not tell."""
        first, _, _ = self.podman_text("host", "ociRuntime", "version").partition("\n")
        return version(first)

    @cached_property
    def criu_file(self) -> str:
        """The file from which CRIU takes its options when podman's runtime calls it."""
        return criu_conf.chosen(self.host, self.runtime, self.runtime_version, self.criu)

    @cached_property
    def criu_options(self) -> dict[str, str]:
        """The options in effect: CRIU's default file first, then the runtime's."""
        return criu_conf.in_effect(self.host, self.criu_file)

    @cached_property
    def version_1(self) -> list[str]:
        """The version 1 cgroup hierarchies that a process here belongs to."""
        lines = (self.host.read("/proc/self/cgroup") or "").splitlines()
        fields = [line.split(":", 2) for line in lines]
        return [field[1] for field in fields if len(field) == 3 and field[0] != "0"]

    @cached_property
    def libraries(self) -> dict[str, str] | None:
        """ld.so's cache: each library's name and path; None where it cannot be read."""
        done = self.host.run(["ldconfig", "-p"])
        if done.status != 0:
            return None
        found = re.findall(r"^\s+(\S+) \(.*\) => (\S+)$", done.out, re.MULTILINE)
        # The first of a name is the one that ld.so takes.
        return dict(reversed(found))

    @cached_property
    def driver(self) -> str:
        """The version of the loaded NVIDIA driver; empty where none is loaded."""
        text = self.host.read("/proc/driver/nvidia/version") or ""
        found = re.search(r"NVRM version:.*?\s(\d{3,}(?:\.\d+)+)\s", text)
        return found[1] if found else ""

    @cached_property
    def has_gpu(self) -> bool:
        """Whether an NVIDIA GPU is in this host, with or without a driver."""
        return bool(self.driver) or any(
            (self.host.read(path) or "").strip() == "0x10de"
            and (self.host.read(path.replace("/vendor", "/class")) or "").startswith("0x03")
            for path in self.host.glob("/sys/bus/pci/devices/*/vendor")
        )
