# SPDX-License-Identifier: MIT
"""The root of the machine without what nothing in it runs, and with CRIU's CUDA plugin."""

import shutil
from pathlib import Path

from tests.machine import cache, chroot, process, root

from . import plugin

# About half of the root's bytes: Debian's own tools, tests and their libraries, documentation,
# and bytecode, which the machine compiles anew when it is put up.
_UNUSED = (
    *("boot", "media", "mnt/*", "var/cache/*", "var/lib/apt", "var/lib/dpkg", "var/log/*"),
    *("usr/include", "usr/lib/*/*.a", "usr/lib/*/gconv", "usr/lib/*/perl*", "usr/share/perl*"),
    *("usr/bin/perl*", "usr/bin/strace", "usr/bin/sqv", "usr/bin/gpg*", "usr/bin/apt*"),
    *("usr/lib/*/libapt*", "usr/lib/apt", "usr/bin/dpkg*", "usr/lib/dpkg", "usr/lib/*/libdb-5*"),
    *("usr/lib/*/libX*", "usr/share/X11", "usr/share/doc", "usr/share/man", "usr/share/locale"),
    *("usr/share/info", "usr/share/lintian", "usr/share/bash-completion", "usr/share/mime"),
    *("usr/share/zoneinfo", "usr/share/perl5", "usr/share/terminfo", "usr/share/common-licenses"),
    *("usr/libexec/podman/podman-testing", "usr/libexec/podman/rootlessport"),
    *("usr/lib/podman/netavark-*", "usr/libexec/podman/quadlet", "etc/ssh/moduli"),
    *("usr/lib/systemd/systemd-networkd", "usr/bin/pzstd", "usr/lib/*/librpm*"),
    *("usr/bin/*-linux-gnu-*", "usr/lib/*/libgprofng*", "usr/lib/*/gprofng", "usr/bin/gprofng*"),
    *("usr/lib/*/libbfd*", "usr/lib/*/libopcodes*", "usr/lib/*/libctf*", "usr/lib/*/libsframe*"),
    *("usr/share/hunspell*", "usr/lib/aspell", "usr/lib/*/libaspell*", "usr/lib/*/libenchant*"),
    *("usr/lib/python3*/test", "usr/lib/python3*/pydoc_data", "usr/lib/python3*/idlelib"),
    *("usr/lib/python3*/**/__pycache__", "usr/lib/python3/dist-packages/pystemd/*.c"),
    *(f"usr/lib/python3/dist-packages/{name}" for name in ("pygments", "hypothesis", "_pytest")),
    *(f"usr/lib/python3/dist-packages/{name}" for name in ("bs4", "html5lib", "gi", "zstandard")),
)
_IMPORTED = (
    *("aiohttp", "dbus_next.aio", "pystemd.dbuslib", "sdnotify", "yaml"),
    "prometheus_client",
    *("pip", "setuptools", "wheel", "sqlite3", "ssl", "uuid", "zoneinfo"),
)
# What packages of other tests bring, and a GPU host has no use for.
_LARGEST = 4 << 20
_LARGE = (
    *("podman", "python3.*", "netavark", "libcrypto.so.*", "libsystemd-*.so", "libpython3*"),
    *("libcriu*", "criu", "systemd", "aardvark-dns", "crun"),
)


def entry() -> cache.Entry:
    """A directory with the slimmed root in it."""
    recipe = "\n".join([Path(__file__).read_text(), root.entry().recipe, plugin.entry().recipe])
    return cache.Entry("gpu/root", recipe, _fill)


def _fill(target: Path) -> None:
    plugins = plugin.entry().build()
    with process.step("the root, slimmed"):
        process.run(["cp", "-a", f"{root.entry().build()}/.", target])
        for pattern in _UNUSED:
            for path in list(target.glob(pattern)):
                _remove(path)
        for path in list(target.rglob("*")):
            if _is_large(path) and not any(path.match(name) for name in _LARGE):
                process.say(f"left out: {path.relative_to(target)}")
                path.unlink()
        shutil.copy(plugins / plugin.NAME, target / "usr/lib/criu" / plugin.NAME)
        # What was left out must not be what llmuxd, or its installation, imports.
        chroot.run(target, ["python3", "-B", "-c", f"import {', '.join(_IMPORTED)}"])


def _is_large(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size > _LARGEST


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
