# SPDX-License-Identifier: MIT
"""Installs the Python package where the distribution keeps its own.

pip knows `--prefix`, but Debian's goes to /usr/local by it and Fedora's does so at times; each
names the scheme of its packages in sysconfig, and that is the one wanted here.
"""

import argparse
import site
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

# Debian's and Fedora's own; the last is plain Python's.
SCHEMES = {
    Path("/usr"): ("deb_system", "rpm_prefix", "posix_prefix"),
    Path("/usr/local"): ("posix_local", "posix_prefix"),
}


def main() -> int:
    """Build a wheel without network and unpack it with its scripts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", default="/usr")
    parser.add_argument("--root", default="/")
    parser.add_argument("--where", action="store_true", help="just say where it goes")
    arguments = parser.parse_args()
    if arguments.where:
        print(where(Path(arguments.prefix)))
        return 0
    root = Path(arguments.root)
    target = root / packages(Path(arguments.prefix)).lstrip("/")
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


def where(prefix: Path) -> str:
    """That of a virtual environment is its own, whatever the prefix of the other files."""
    if sys.prefix != sys.base_prefix:
        return sysconfig.get_path("purelib")
    return packages(prefix)


def packages(prefix: Path) -> str:
    """The directory below `prefix` that the interpreter has in its path."""
    schemes = SCHEMES.get(prefix, ("posix_prefix",))
    scheme = next(name for name in schemes if name in sysconfig.get_scheme_names())
    # Debian's posix_local puts `local` behind its base.
    base = str(prefix.parent if scheme == "posix_local" else prefix)
    found = sysconfig.get_path("purelib", scheme, {"base": base, "platbase": base})
    if found not in site.getsitepackages():
        print(
            f"note: {sys.executable} does not look into {found}: set PYTHONPATH for llmuxd",
            file=sys.stderr,
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
