# SPDX-License-Identifier: MIT
"""llmuxctl check's lines about Python, SELinux, firewalls, disks and the host's own units."""

from importlib import metadata
from pathlib import Path

import pytest

from llmuxd.ctl import check
from llmuxd.ctl.checks.change import Run
from llmuxd.ctl.checks.host import Done, Host
from llmuxd.ctl.checks.result import Status
from llmuxd.model import place
from llmuxd.model.network import RULES

from .recorded import (
    CONFIG,
    GIB,
    RecordedHost,
    a_gpu_host,
    a_host,
    failing,
    found,
    label,
    podman_info,
    record,
    told,
)


@pytest.fixture
def cpu() -> RecordedHost:
    return a_host()


@pytest.fixture
def gpu() -> RecordedHost:
    return a_gpu_host()


def configure(here: RecordedHost, defaults: str = "", models: str = "") -> None:
    """Add lines to the defaults, or have other models."""
    text = str(here.files[str(CONFIG)])
    text = text.replace("models:", f"  {defaults}\nmodels:") if defaults else text
    if models:
        text = text.partition("models:")[0] + f"models:\n{models}"
    here.files[str(CONFIG)] = text


# Python


def test_python_and_its_packages(cpu: RecordedHost) -> None:
    told(cpu, "python", Status.OK, "3.13.5 with aiohttp 3.11.16, pystemd 0.13.4")


@pytest.mark.parametrize(
    ("name", "version", "text"),
    [
        ("pystemd", "0.11.0", "pystemd 0.11.0 is too old"),
        ("pystemd", None, "pystemd is not here"),
        ("python", "3.9.21", "python 3.9.21 is too old"),
    ],
)
def test_python_that_lacks_something(
    cpu: RecordedHost, name: str, version: str | None, text: str
) -> None:
    del cpu.packages[name]
    if version:
        cpu.packages[name] = version
    failing(cpu, "python", text, f"install {name} ")


def test_python_where_llmuxd_is_not_installed(cpu: RecordedHost) -> None:
    cpu.needs = []
    told(cpu, "python", Status.SKIP, "does not say what it needs")


@pytest.mark.parametrize("line", ["aiohttp>=3.9", "aiohttp (>=3.9)", "aiohttp >=3.9"])
def test_requirements_as_packages_write_them(cpu: RecordedHost, line: str) -> None:
    cpu.needs, cpu.packages = [line], {"aiohttp": "3.8.9"}
    failing(cpu, "python", "aiohttp 3.8.9 is too old", "install aiohttp 3.9 or newer")


def test_a_real_host_knows_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Host()
    assert here.package("pytest") == metadata.version("pytest")
    assert (here.package("python") or "").startswith("3.")
    assert here.package("no-such-package") is None
    told_by = metadata.PathDistribution.from_name("pytest")
    monkeypatch.setattr(metadata, "metadata", lambda name: told_by.metadata)
    assert any(line.startswith("python>=3") for line in here.requirements())
    assert any(line.startswith("pluggy") for line in here.requirements())

    def none(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", none)
    assert here.requirements() == []


# SELinux


def enforce(here: RecordedHost, kind: str = "container_runtime_exec_t") -> None:
    here.files["/sys/fs/selinux/enforce"] = "1"
    here.commands[label("/usr/bin/podman")] = Done(0, f"system_u:object_r:{kind}:s0\n")


def test_selinux_that_is_in_nobodys_way(cpu: RecordedHost) -> None:
    enforce(cpu)
    told(cpu, "selinux", Status.OK, "enforcing, with container-selinux")
    cpu.files["/sys/fs/selinux/enforce"] = "0"
    told(cpu, "selinux", Status.OK, "permissive")


def test_selinux_without_container_selinux(cpu: RecordedHost) -> None:
    enforce(cpu, "bin_t")
    failing(cpu, "selinux", "/usr/bin/podman is bin_t", "install container-selinux")
    cpu.commands[label("/usr/bin/podman")] = Done(0, "?\n")
    failing(cpu, "selinux", "/usr/bin/podman is without a label", "restorecon")


def test_selinux_and_a_criu_that_does_not_know_it(cpu: RecordedHost) -> None:
    enforce(cpu)
    cpu.files["/usr/sbin/criu"] = b"\x7fELF\x02\x01 libc.so.6\0libnl-3.so.200\0"
    failing(cpu, "selinux", "built without SELinux", "libselinux")
    cpu.files["/usr/sbin/criu"] = b"\x7fELF\x02\x01 libc.so.6\0libselinux.so.1\0"
    told(cpu, "selinux", Status.OK, "enforcing")


def test_selinux_and_a_log_file_of_crius(cpu: RecordedHost) -> None:
    enforce(cpu)
    cpu.files["/etc/criu/crun.conf"] = f"{cpu.files['/etc/criu/crun.conf']!s}log-file=/tmp/x\n"
    failing(cpu, "selinux", "every checkpoint fails", "remove log-file from /etc/criu/crun.conf")


def test_selinux_and_the_gpus(gpu: RecordedHost) -> None:
    told(gpu, "selinux", Status.OK, "enforcing")
    gpu.files["/sys/fs/selinux/booleans/container_use_xserver_devices"] = "0 0"
    told(gpu, "selinux", Status.WARN, "keep containers from the GPUs", "setsebool -P container_use")
    configure(gpu, "podman_args: [--security-opt=label=disable]")
    told(gpu, "selinux", Status.OK, "enforcing")


def test_selinux_and_volumes(cpu: RecordedHost) -> None:
    enforce(cpu)
    cpu.commands[label("/srv/a")] = Done(0, "system_u:object_r:var_t:s0\n")
    cpu.commands[label("/srv/b")] = Done(0, "system_u:object_r:container_file_t:s0\n")
    configure(cpu, "volumes: ['/srv/a:/a', '/srv/b:/b', 'named:/c']")
    told(cpu, "selinux", Status.WARN, "/srv/a is var_t, which containers may not use", "':z'")
    for mended in ("/srv/a:/a:z", "/srv/a:/a:ro,Z"):
        cpu.files[str(CONFIG)] = str(a_host().files[str(CONFIG)])
        configure(cpu, f"volumes: ['{mended}']")
        told(cpu, "selinux", Status.OK, "enforcing")


def test_selinux_where_podman_does_not_label(cpu: RecordedHost) -> None:
    enforce(cpu)
    cpu.commands[label("/srv/a")] = Done(0, "system_u:object_r:var_t:s0\n")
    configure(cpu, "volumes: ['/srv/a:/a']")
    security = podman_info()["host"]["security"] | {"selinuxEnabled": False}
    cpu.podman(podman_info(security=security))
    told(cpu, "selinux", Status.OK, "enforcing")


# Networks


LIST_TABLE = "nft list table inet llmux"


def test_network_whose_table_is_gone(cpu: RecordedHost) -> None:
    told(cpu, "network", Status.OK, "closed by nftables: 2 internet, whose table the first start")
    cpu.files["/sys/class/net/llmuxi-8139fc6d"] = ""
    cpu.files["/sys/class/net/llmuxo-00000000"] = ""
    failing(cpu, "network", "inet llmux is gone, and nothing closes 1 that is up", "nft --file")
    assert found(cpu, "network").changes == (Run(("nft", "--file", str(RULES))),)
    cpu.commands[LIST_TABLE] = Done(0, "table inet llmux {\n}\n")
    told(cpu, "network", Status.OK, "closed by nftables: 2 internet")


def test_firewall_that_is_none(cpu: RecordedHost) -> None:
    told(cpu, "firewall", Status.OK, "nothing that is in the way")
    configure(cpu, "podman_args: [--network=host]")
    told(cpu, "firewall", Status.SKIP, "no model is configured that has a network of its own")


def test_firewall_of_an_nftables_that_flushes(cpu: RecordedHost) -> None:
    cpu.files["/etc/nftables.conf"] = "#!/usr/sbin/nft -f\n\nflush ruleset\n"
    told(cpu, "firewall", Status.OK, "nothing")
    cpu.unit("nftables.service", UnitFileState="enabled")
    told(cpu, "firewall", Status.WARN, "flushes the ruleset", '"/usr/share/llmuxd/*.nft"')
    for ours in ("/usr/share/llmuxd/*.nft", "/usr/share/llmuxd/network.nft"):
        cpu.files["/etc/nftables.conf"] = f'flush ruleset\ninclude "{ours}"\n'
        told(cpu, "firewall", Status.OK, "nothing")


def test_firewall_of_ufw(cpu: RecordedHost) -> None:
    cpu.files["/etc/ufw/ufw.conf"] = "# no\nENABLED=no\n"
    cpu.files["/etc/default/ufw"] = 'DEFAULT_FORWARD_POLICY="DROP"\n'
    told(cpu, "firewall", Status.OK, "nothing")
    cpu.files["/etc/ufw/ufw.conf"] = "ENABLED=yes\n"
    told(cpu, "firewall", Status.WARN, "ufw drops what is forwarded", "ufw default allow routed")
    cpu.files["/etc/default/ufw"] = 'DEFAULT_FORWARD_POLICY="ACCEPT"\n'
    told(cpu, "firewall", Status.OK, "nothing")
    cpu.remove("/etc/default/ufw")
    configure(cpu, "network: private")
    told(cpu, "firewall", Status.OK, "nothing")


def test_firewall_of_firewalld(cpu: RecordedHost) -> None:
    cpu.unit("firewalld.service", ActiveState="active")
    told(cpu, "firewall", Status.WARN, "podman's ports away", "netavark-firewalld-reload.service")
    cpu.unit("netavark-firewalld-reload.service", ActiveState="active")
    told(cpu, "firewall", Status.OK, "nothing")
    cpu.files["/etc/firewalld/firewalld.conf"] = "DefaultZone=public\nStrictForwardPorts=yes\n"
    failing(cpu, "firewall", "refuses the ports that podman publishes", "StrictForwardPorts=no")


# Disks


def mounted(here: RecordedHost, where: str, kind: str, options: str = "rw") -> None:
    line = f"99 1 0:99 / {where} {options} shared:9 - {kind} none rw\n"
    here.files["/proc/self/mountinfo"] = f"{here.files['/proc/self/mountinfo']!s}{line}"
    here.files[f"{where}/x"] = ""


def test_disk_of_each_checkpoint_dir(cpu: RecordedHost) -> None:
    configure(cpu, models="  a: {checkpoint_dir: /srv/images}\n  b: {}\n")
    mounted(cpu, "/srv", "xfs")
    record(cpu, "a", 9 * GIB, there=True)
    disks = [each for each in check.run(CONFIG, cpu) if each.name == "disk"]
    assert [each.status for each in disks] == [Status.OK, Status.OK]
    assert "1 checkpoint takes 4.0G" in disks[0].text
    assert "1 checkpoint takes 9.0G, /srv/images has 509G for them" in disks[1].text


def elsewhere(cpu: RecordedHost, kind: str, options: str = "rw") -> None:
    configure(cpu, "checkpoint_dir: /srv/images")
    mounted(cpu, "/srv", kind, options)


@pytest.mark.parametrize(("kind", "options"), [("xfs", "ro,relatime"), ("vfat", "rw")])
def test_disk_that_takes_no_checkpoint(cpu: RecordedHost, kind: str, options: str) -> None:
    elsewhere(cpu, kind, options)
    failing(cpu, "disk", "takes no checkpoint", "name another directory")


def test_disk_over_the_network(cpu: RecordedHost) -> None:
    elsewhere(cpu, "nfs4")
    told(cpu, "disk", Status.WARN, "over the network (nfs4)", "a disk of this host")


def test_disk_in_memory(cpu: RecordedHost) -> None:
    elsewhere(cpu, "tmpfs")
    cpu.files["/proc/meminfo"] = "MemTotal:       65536000 kB\nMemFree: 1 kB\n"
    told(cpu, "disk", Status.OK, "in memory (tmpfs): they are gone after a reboot")
    cpu.files["/proc/meminfo"] = "MemTotal:       10485760 kB\n"
    told(cpu, "disk", Status.WARN, "this host has 10.0G for the servers too", "fewer of them")


def test_disk_that_others_may_write_to(cpu: RecordedHost) -> None:
    elsewhere(cpu, "xfs")
    cpu.open["/srv"] = "/srv"
    failing(cpu, "disk", "others than root may write to /srv", "chmod go-w /srv")


def test_disk_of_the_innermost_mount(cpu: RecordedHost) -> None:
    configure(cpu, "checkpoint_dir: /srv/my images/x")
    mounted(cpu, "/srv", "nfs")
    mounted(cpu, "/srv/my\\040images", "xfs")
    mounted(cpu, "/srv/my", "nfs")
    cpu.files["/srv/my images/x/y"] = ""
    told(cpu, "disk", Status.OK, "/srv/my images/x has")


def test_open_directories_of_the_real_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Host()
    assert here.unsafe("/tmp") == "/tmp"
    assert here.unsafe(f"{tmp_path}/none") is None
    monkeypatch.setattr(place, "_is_open", lambda path: path == tmp_path)
    assert here.unsafe(str(tmp_path)) == str(tmp_path)


# The host's own units


OLLAMA = {"LoadState": "loaded", "Type": "exec", "UnitFileState": "disabled"}


@pytest.fixture
def ollama(cpu: RecordedHost) -> RecordedHost:
    configure(
        cpu,
        models="  a: {}\n  o: {engine: unit, unit: ollama.service, port: 11434, tier: park}\n",
    )
    cpu.unit("ollama.service", **OLLAMA)
    return cpu


def test_unit_that_is_in_order(ollama: RecordedHost) -> None:
    told(ollama, "unit", Status.OK, "ollama.service, Type=exec")
    told(ollama, "network", Status.OK, "closed by nftables: 1 internet")


def test_unit_needs_nothing_that_containers_need(cpu: RecordedHost) -> None:
    cpu.files[str(CONFIG)] = "models: {o: {engine: unit, unit: ollama.service}}"
    for line in ("network", "firewall", "devices", "image"):
        told(cpu, line, Status.SKIP, "no model")


@pytest.mark.parametrize(
    ("change", "status", "text", "hint"),
    [
        ({"LoadState": "not-found"}, Status.FAIL, "does not exist", "install it"),
        ({"LoadState": "masked"}, Status.FAIL, "is masked", "systemctl unmask ollama.service"),
        ({"LoadState": "bad-setting"}, Status.FAIL, "cannot be loaded: bad-setting", "systemctl"),
        ({"Type": "oneshot"}, Status.FAIL, "no main process", "Type=exec"),
        ({"FreezerState": "frozen"}, Status.FAIL, "is frozen", "systemctl thaw ollama.service"),
        ({"UnitFileState": "enabled"}, Status.WARN, "is enabled", "systemctl disable"),
        ({"NeedDaemonReload": "yes"}, Status.WARN, "changed on disk", "daemon-reload"),
    ],
)
def test_unit_that_is_not(
    ollama: RecordedHost, change: dict[str, str], status: Status, text: str, hint: str
) -> None:
    ollama.unit("ollama.service", **OLLAMA | change)
    told(ollama, "unit", status, text, hint)


def test_unit_with_a_watchdog(ollama: RecordedHost) -> None:
    text = "# /etc/systemd/system/ollama.service\n[Service]\nWatchdogSec=30\n"
    ollama.commands["systemctl cat -- ollama.service"] = Done(0, text)
    failing(ollama, "unit", "would kill it while it is parked", "tier: checkpoint")
    ollama.commands["systemctl cat -- ollama.service"] = Done(0, f"{text}WatchdogSec=0\n")
    told(ollama, "unit", Status.OK, "ollama.service")
    # One that is stopped instead.
    ollama.commands["systemctl cat -- ollama.service"] = Done(0, text)
    ollama.files[str(CONFIG)] = str(ollama.files[str(CONFIG)]).replace(", tier: park", "")
    told(ollama, "unit", Status.OK, "ollama.service")


def test_unit_of_which_systemd_does_not_tell(ollama: RecordedHost) -> None:
    ollama.commands = {}
    failing(ollama, "unit", "systemctl does not tell of ollama.service", "systemctl status")
