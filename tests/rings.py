# SPDX-License-Identifier: MIT
"""make check: lint, types and every ring of tests, each with the seconds that it took.

Installs what it needs: a virtual environment of the distribution's Python for the rings on this
host, the throw-away machine for the others. Standard library only.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
VENV = TOP / ".venv"
PYTHON = "/usr/bin/python3"
REQUIREMENTS = TOP / "tests" / "requirements.txt"
MACHINE = "check"
THERE = "/usr/src/llmuxd"

# Debian's packages: pystemd is compiled and so is the unit ring's libcuda, the bus ring has a
# dbus-daemon of its own, names are held against systemd-escape's, the pages against go-md2man's,
# and the completions are tried in each shell.
PACKAGES = (
    "dbus-daemon",
    "fish",
    "gcc",
    "go-md2man",
    "libc6-dev",
    "libsystemd-dev",
    "mandoc",
    "pkg-config",
    "python3-dev",
    "python3-pip",
    "python3-venv",
    "systemd",
    "zsh",
)


class Red(Exception):
    """A ring failed; it has said why."""


def main() -> int:
    """Exit status 0 only if every ring is green; a red one does not keep the next from running."""
    # A shell has its background jobs ignore it, and what they start: tests type Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names = sys.argv[1:] or list(RINGS)
    taken: list[tuple[str, float, bool]] = []
    for name in names:
        print(f"=== {name}", flush=True)
        begin = time.monotonic()
        green = True
        try:
            RINGS[name]()
        except Red as error:
            print(f"{name}: {error}", flush=True)
            green = False
        taken.append((name, time.monotonic() - begin, green))
        if name == "tools" and not green:
            break
    print("=== seconds")
    for name, seconds, green in taken:
        print(f"{name:8} {seconds:7.1f}  {'green' if green else 'RED'}")
    failed = sum(not green for _, _, green in taken)
    print(f"rings: {len(taken) - failed} passed, {failed} failed")
    return 1 if failed else 0


def tools() -> None:
    """What the rings on this host need."""
    missing = [package for package in PACKAGES if not installed(package)]
    if missing:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        sh(["apt-get", "-q", "update"], environment)
        install = ["apt-get", "-q", "install", "--yes", "--no-install-recommends", *missing]
        sh(install, environment)
    mark = VENV / "made-of"
    recipe = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if mark.exists() and mark.read_text(encoding="ascii") == recipe:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    sh([PYTHON, "-m", "venv", str(VENV)])
    sh([str(VENV / "bin/pip"), "install", "--quiet", "wheel", "-r", str(REQUIREMENTS)])
    mark.write_text(recipe, encoding="ascii")


def installed(package: str) -> bool:
    """Whether dpkg has the package, whole."""
    told = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout == "installed"


def lint() -> None:
    """ruff, the manual pages, and that the shell of .ci/run parses."""
    sh([venv("ruff"), "check", "."])
    sh([venv("ruff"), "format", "--check", "--quiet", "."])
    sh(["bash", "-n", ".ci/run"])
    pages = sorted((TOP / "packaging" / "man").glob("*.md"))
    for page in pages:
        # Exit status 1 where the page in the tree is not what its Markdown gives.
        sh(["sh", "-c", 'go-md2man -in "$1" | cmp - "$2"', "make man", str(page),
            str(page.with_suffix(""))])  # fmt: skip
    sh(["mandoc", "-T", "lint", "-W", "error", *(str(page.with_suffix("")) for page in pages)])


def holes() -> None:
    """Nothing that is pinned has a known hole; skipped where nobody can say."""
    sh([PYTHON, "tests/audit.py", venv("pip-audit")])


def from_pins() -> None:
    """`make install-venv` and a start of what it installs; skipped where the registry is not."""
    sh([PYTHON, "tests/installed.py"])


def types() -> None:
    """mypy --strict."""
    sh([venv("mypy")])


def unit() -> None:
    """Milliseconds each, no bus and no systemd, on the distribution's Python of this host."""
    pytest("tests/unit")


def bus() -> None:
    """A private dbus-daemon with the shipped policy, and mocks of systemd."""
    pytest("tests/bus")


def machine() -> None:
    """Real systemd, dbus-broker, podman, CRIU and engines; the other rings again on its Python."""
    environment = os.environ | {"LLMUX_MACHINE": MACHINE, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [PYTHON, "-m", "tests.machine"]
    script = (
        f"cd {THERE} && export PYTHONDONTWRITEBYTECODE=1"
        # The checkout is read-only there.
        " HYPOTHESIS_STORAGE_DIRECTORY=/var/tmp/hypothesis &&"
        # The unit ring runs in it too, as the %check of the RPM that test_package.py builds.
        " python3 -P -m pytest -q -p no:cacheprovider tests/bus &&"
        " python3 -P -m pytest -q -p no:cacheprovider --durations=10 tests/machine/ring"
    )
    # What was left of an earlier run would be tested instead of this checkout.
    sh([*command, "poweroff"], environment)
    try:
        sh([*command, "boot"], environment)
        sh([*command, "run", "--", "sh", "-c", script], environment)
        # Part of the faults only; which ones is another matter each time.
        sh([PYTHON, "-m", "tests.machine.soak", "1"], environment)
    finally:
        subprocess.run([*command, "poweroff"], cwd=TOP, env=environment, check=False)


def pytest(*paths: str) -> None:
    """Run tests on the host, with the repository's root not on the path: it has a dbus/ folder."""
    sh([venv("python"), "-P", "-m", "pytest", "-q", *paths])


def venv(program: str) -> str:
    """A program of the virtual environment."""
    return str(VENV / "bin" / program)


def sh(argv: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command in the repository's root, its output passed through."""
    done = subprocess.run(argv, cwd=TOP, env=environment, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise Red(f"{' '.join(argv[:6])} … ended with {done.returncode}")


RINGS: dict[str, Callable[[], None]] = {
    "tools": tools,
    "lint": lint,
    "holes": holes,
    "pins": from_pins,
    "types": types,
    "unit": unit,
    "bus": bus,
    "machine": machine,
}


if __name__ == "__main__":
    sys.exit(main())
