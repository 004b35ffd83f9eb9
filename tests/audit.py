# SPDX-License-Identifier: MIT
"""Whether what is pinned has known holes: pip-audit's findings, where it can have its data.

pip-audit asks PyPI for each package. Where PyPI does not say (a mirror of files alone) it skips the
package, and where it skipped all of them it still calls that "no known vulnerabilities found".
Standard library only.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
FILES = ("packaging/requirements.txt", "packaging/build-requirements.txt")
# A release and its hole, years old: who does not know that knows nothing.
KNOWN = "pyyaml==5.3"
HOLE = "PYSEC-2021-142"


@dataclass(frozen=True)
class Findings:
    """`holes`: a line each; `asked` and `unknown`: how many packages there was an answer for."""

    holes: tuple[str, ...]
    asked: int
    unknown: int


class NoData(Exception):
    """Nothing was found out; one line says why."""


def run(pip_audit: str) -> Findings:
    """What is known of the pinned packages; NoData where nothing is."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as known:
        known.write(f"{KNOWN}\n")
        known.flush()
        told = _ask(pip_audit, "--no-deps", "--requirement", known.name)
    if not any(HOLE in hole for hole in told.holes):
        raise NoData(f"whoever answers does not know {HOLE} of {KNOWN}")
    files = [word for file in FILES for word in ("--requirement", file)]
    return _ask(pip_audit, "--require-hashes", *files)


def _ask(pip_audit: str, *what: str) -> Findings:
    argv = [pip_audit, "--disable-pip", "--format", "json", *what]
    try:
        done = subprocess.run(
            argv, cwd=TOP, capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoData(str(error)) from None
    try:
        return read(done.stdout)
    except ValueError:
        raise NoData((done.stderr.strip().splitlines() or ["it said nothing"])[-1]) from None


def read(text: str) -> Findings:
    """pip-audit's JSON; NoData where every package was skipped, ValueError where it is none."""
    packages = json.loads(text)["dependencies"]
    skipped = [package["skip_reason"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        raise NoData(skipped[0] if skipped else "there is nothing to ask about")
    holes = tuple(
        f"{package['name']} {package['version']}: {hole['id']},"
        f" mended in {', '.join(hole['fix_versions']) or 'no version'}"
        for package in packages
        for hole in package.get("vulns", ())
    )
    return Findings(holes, len(packages) - len(skipped), len(skipped))


def main() -> int:
    """Exit status 1 where there is a known hole."""
    try:
        found = run(sys.argv[1])
    except NoData as why:
        print(f"skipped: {why}")
        return 0
    print(f"{found.asked} packages looked up, {found.unknown} unknown", *found.holes, sep="\n")
    return 1 if found.holes else 0


if __name__ == "__main__":
    sys.exit(main())
