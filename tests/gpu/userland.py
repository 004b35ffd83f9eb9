# SPDX-License-Identifier: MIT
"""The host's PyTorch, CUDA libraries, compiler and Python, put into vLLM's image by hard links.

podman would take a minute to import 10 GB of them; in a store that it only reads, a layer is a
directory, and files of the same file system need no copying.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.machine import process, store
from tests.machine.errors import MachineError

from . import image

# Of /usr/local nothing: CUDA's toolkit is there, and PyTorch brings the libraries that it needs.
_TREES = (
    *("usr/bin", "usr/include", "usr/lib", "usr/lib64", "usr/libexec", "usr/sbin"),
    *("usr/share/python3", "usr/share/zoneinfo"),
    *("etc/alternatives", "etc/ld.so.conf", "etc/ld.so.conf.d", "etc/ssl", "etc/python3.12"),
)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def fill(image_store: Path) -> None:
    """Make the image whole for the Python that runs this, which has PyTorch."""
    rootfs = store.rootfs(image_store)
    with process.step("the host's Python and PyTorch into vLLM's image"):
        for name in (*_TREES, sys.prefix.lstrip("/")):
            _link(Path("/") / name, rootfs / name)
        # The driver's own come in by CDI; these would be links to nothing.
        for pattern in ("usr/lib/libcuda*", "usr/lib/libnvidia*", "usr/lib/lib*_nvidia*"):
            for path in rootfs.glob(pattern):
                path.unlink()
        for name, text in _FILES.items():
            (rootfs / name).write_text(text)
        start = rootfs / image.START
        start.write_text(
            f'#!/bin/sh\nexec {sys.executable} -m vllm.entrypoints.openai.api_server "$@"\n'
        )
        start.chmod(0o755)
        process.run(["ldconfig", "-r", rootfs])
    with process.step("compiling bytecode"):
        site = rootfs / image.SITE
        packages = rootfs / sys.prefix.lstrip("/") / "lib"
        subprocess.run(
            [
                *(sys.executable, "-m", "compileall", "-qq", "-j", str(os.cpu_count())),
                *("--invalidation-mode", "unchecked-hash", "-s", str(rootfs), "-p", "/"),
                *(str(site), *map(str, packages.glob("python3*/site-packages/t*"))),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,  # a package may have a file for another Python
        )


def _link(source: Path, target: Path) -> None:
    """A copy of a file or tree that shares its files; real copies across file systems."""
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        process.run(["cp", "-a", "--link", "-T", source, target])
    except MachineError:
        process.run(["cp", "-a", "-T", source, target])
