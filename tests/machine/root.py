# SPDX-License-Identifier: MIT
"""The machine's root file system: Debian with podman, CRIU and llmuxd's dependencies."""

import shutil
from pathlib import Path

from . import cache, debian, process

SUITE = "forky"

PACKAGES = (
    # the machine itself
    *("systemd", "systemd-sysv", "dbus", "dbus-broker", "polkitd"),
    # containers and checkpoints; libcriu2 is what crun opens at run time
    *("podman", "crun", "criu", "libcriu2", "conmon"),
    "catatonit",
    *("netavark", "aardvark-dns", "iproute2", "iptables", "nftables"),
    # llmuxd
    *("python3", "python3-aiohttp", "python3-dbus-next", "python3-prometheus-client"),
    *("python3-pystemd", "python3-sdnotify", "python3-yaml"),
    # its installation and its tests
    *("make", "python3-pip", "python3-setuptools", "python3-wheel"),
    *("file", "prometheus", "rpm", "rpmlint"),
    *("python3-hypothesis", "python3-pytest", "python3-pytest-asyncio"),
    # what a person types in it
    *("openssh-client", "openssh-server"),
    *("curl", "dbus-bin", "dbus-x11", "jq", "less", "libglib2.0-bin", "procps", "socat", "strace"),
)

# Units that want a network, a console, modules or a disk of their own, that would change the
# host's kernel, or that run when nobody expects it.
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer"),
    *("console-getty.service", "getty@.service", "getty.target"),
    *("dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("ldconfig.service", "modprobe@.service", "proc-sys-fs-binfmt_misc.automount"),
    *("systemd-binfmt.service", "systemd-journal-catalog-update.service"),
    *("systemd-remount-fs.service", "systemd-sysctl.service", "systemd-tmpfiles-clean.timer"),
    *("ssh.service", "ssh.socket", "prometheus.service"),
    *("podman-auto-update.service", "podman-auto-update.timer", "podman.socket"),
    *("systemd-networkd.service", "systemd-networkd.socket"),
)

# Places for what a boot binds; and CRIU dumps nothing when its plugins' directory, which crun.conf
# names, is missing. Debian's package has none.
_DIRECTORIES = (
    *("srv/models", "usr/src/llmuxd", "var/lib/containers", "var/lib/llmux-images"),
    "usr/lib/criu",
)

# Files laid over the packages' own, by their path in the machine.
_OVERLAY = Path(__file__).parent / "overlay"


def entry() -> cache.Entry:
    laid = [f"{path.relative_to(_OVERLAY)}\n{path.read_text()}" for path in _overlay_files()]
    recipe = "\n".join([SUITE, *PACKAGES, *MASKED, *_DIRECTORIES, *laid])
    return cache.Entry("root", recipe, _fill)


def _overlay_files() -> list[Path]:
    return sorted(path for path in _OVERLAY.rglob("*") if path.is_file())


def _fill(target: Path) -> None:
    with process.step(f"root: Debian {SUITE}, {len(PACKAGES)} packages and what they need"):
        debian.bootstrap(target, SUITE, PACKAGES)
    for path in _overlay_files():
        laid = target / path.relative_to(_OVERLAY)
        laid.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, laid)
    for unit in MASKED:
        link = target / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    # Empty, not absent: each machine gets an identity of its own, and no first-boot questions.
    (target / "etc/machine-id").write_text("")
    (target / "etc/resolv.conf").write_text("# This machine has no network but loopback.\n")
    for name in _DIRECTORIES:
        (target / name).mkdir(parents=True, exist_ok=True)
