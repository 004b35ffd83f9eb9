# SPDX-License-Identifier: MIT
"""Whether `make install-venv` gives a llmuxd that starts; skipped where there is no registry.

Into a directory of its own, with whichever index pip is told of here. Standard library only.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
# The smaller one of the two: what the others are built with.
FIRST = "packaging/build-requirements.txt"
# pip's words where it can't have a file at all, which is no fault of what was pinned.
_OUT_OF_REACH = re.compile(
    r"No matching distribution|ConnectionError|NewConnectionError|ConnectTimeout|ReadTimeout"
    r"|ProxyError|SSLError|Temporary failure in name resolution|\b[45]\d\d (?:Client|Server) Error"
)


def main() -> int:
    """Exit status 1 where it cannot be installed, or does not start."""
    with tempfile.TemporaryDirectory(prefix="llmux-venv-") as work:
        why = out_of_reach(Path(work))
        if why:
            print(f"skipped: {why}")
            return 0
        return install(Path(work) / "root", Path(work) / "venv")


def out_of_reach(work: Path) -> str:
    """pip's last words where the registry does not give the first files; empty where it does."""
    download = ["download", "--no-deps", "--require-hashes", "--dest", str(work), "-r", FIRST]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *download]
    # Not for long: whoever has no network is to hear of it at once.
    environment = os.environ | {"PIP_RETRIES": "1", "PIP_DEFAULT_TIMEOUT": "15"}
    done = subprocess.run(
        pip, cwd=TOP, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0 or not _OUT_OF_REACH.search(done.stderr):
        return ""
    return done.stderr.strip().splitlines()[-1]


def install(root: Path, venv: Path) -> int:
    """Install it, and ask both programs for their version by the paths that users have."""
    make = ["make", "install-venv", f"VENV={venv}", f"DESTDIR={root}", f"PYTHON={sys.executable}"]
    if subprocess.run(make, cwd=TOP, check=False).returncode:
        return 1
    text = (TOP / "llmuxd/__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.*)"', text, re.MULTILINE)
    for command in (["llmuxd", "--version"], ["llmuxctl", "--version"], ["llmuxd", "--help"]):
        argv = [str(root / "usr/bin" / command[0]), *command[1:]]
        done = subprocess.run(argv, cwd="/", capture_output=True, text=True, check=False)
        if done.returncode or not (version in done.stdout or "--help" in command):
            print(f"{' '.join(command)}: {done.stdout}{done.stderr}")
            return 1
    # What the models' units run has the same Python.
    helper = (root / "usr/libexec/llmux/llmux-model").read_text(encoding="utf-8")
    if not helper.startswith(f"#!{venv}/bin/python3"):
        print(f"llmux-model: {helper.splitlines()[0]}")
        return 1
    # It looks nowhere else for this package.
    packages = Path(*re.findall(r'sys.path.append\("(.+)"\)', helper))
    if not (packages / "llmuxd").is_dir():
        print(f"llmux-model: llmuxd is not in {packages}")
        return 1
    print(f"llmuxd {version} starts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
