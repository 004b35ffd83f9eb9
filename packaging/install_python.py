# SPDX-License-Identifier: MIT
"""Installs the Python package where the distribution keeps its own.

pip knows `--prefix`, but Debian's goes to /usr/local by it and Fedora's does so at times; each
names the scheme of its packages in sysconfig, and that is the one wanted here.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

# Debian's and Fedora's own; the last is plain Python's.
SCHEMES = ("deb_system", "rpm_prefix", "posix_prefix")


def main() -> int:
    """Build a wheel without network and unpack it with its scripts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", default="/usr")
    parser.add_argument("--root", default="/")
    arguments = parser.parse_args()
    scheme = next(name for name in SCHEMES if name in sysconfig.get_scheme_names())
    base = {"base": arguments.prefix, "platbase": arguments.prefix}
    site = sysconfig.get_path("purelib", scheme, base)
    root = Path(arguments.root)
    target = root / site.lstrip("/")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(
            [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", work, "."],
            check=True,
        )
        (wheel,) = Path(work).glob("*.whl")
        subprocess.run(
            [*pip, "install", "--no-deps", "--no-index", "--upgrade", "--no-warn-script-location",
             "--target", str(target), str(wheel)],
            check=True,
        )  # fmt: skip
    # --target puts the scripts beside the packages.
    scripts = root / arguments.prefix.lstrip("/") / "bin"
    scripts.mkdir(parents=True, exist_ok=True)
    for name in ("llmuxd", "llmuxctl"):
        (target / "bin" / name).replace(scripts / name)
    (target / "bin").rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
