# SPDX-License-Identifier: MIT
"""CRIU's CUDA plugin, which Debian does not ship, built from the source of the CRIU in the root."""

from pathlib import Path

from tests.machine import cache, chroot, process, root

NAME = "cuda_plugin.so"

_NEEDED = (
    *("gcc", "libc6-dev", "make", "pkg-config", "protobuf-c-compiler", "protobuf-compiler"),
    *("libaio-dev", "libbsd-dev", "libcap-dev", "libdrm-dev", "libgnutls28-dev", "libnet1-dev"),
    *("libnftables-dev", "libnl-3-dev", "libnl-genl-3-dev", "libnl-route-3-dev"),
    *("libprotobuf-c-dev", "libprotobuf-dev", "uuid-dev", "xz-utils"),
)

# Run in the root. The first line of --print-uris that is of the source itself is
# 'URL' FILE SIZE HASH; Debian's own changes are not to the plugin, and are not asked for.
_BUILD = f"""
set -eu
printf '%s' "$1" > /etc/resolv.conf
echo 'deb-src http://deb.debian.org/debian {root.SUITE} main' >> /etc/apt/sources.list
echo 'Acquire::Check-Valid-Until "false"; APT::Sandbox::User "root";' > /etc/apt/apt.conf.d/99llmux
apt-get -q update
DEBIAN_FRONTEND=noninteractive apt-get -q --yes --no-install-recommends install {" ".join(_NEEDED)}
cd /var/tmp
have=$(criu --version | sed -n 's/^Version: //p')
set -- $(apt-get source --print-uris criu | grep '\\.orig\\.tar' | head -n 1)
curl --fail --silent --show-error --output "$2" "$(echo "$1" | tr -d \\')"
echo "${{4#*:}}  $2" | sha256sum --check --quiet
tar -xf "$2"
if ! [ -d "criu-$have" ]; then
    echo "CRIU $have is installed, and the source is $2" >&2
    exit 1
fi
make -C criu-"$have" cuda_plugin
cp criu-"$have"/plugins/cuda/{NAME} /built/
"""


def entry() -> cache.Entry:
    """A directory with the plugin in it."""
    return cache.Entry("gpu/plugin", f"{root.entry().recipe}\n{_BUILD}", _fill)


def _fill(target: Path) -> None:
    names = Path("/etc/resolv.conf").read_text()
    with process.step("CRIU's CUDA plugin, from source"):
        command = ["sh", "-c", _BUILD, "sh", names]
        chroot.run(root.entry().build(), command, binds={"/built": target})
