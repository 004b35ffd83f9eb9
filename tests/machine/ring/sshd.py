# SPDX-License-Identifier: MIT
"""A sshd on the machine's own port 22, which root gets in to by a key of this test's."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .guest import eventually, sh

_HOME = Path("/root/.ssh")


@contextmanager
def a_sshd() -> Iterator[None]:
    """It listens on loopback while the block lasts."""
    shutil.rmtree(_HOME, ignore_errors=True)
    _HOME.mkdir(mode=0o700)
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(_HOME / "id_ed25519"))
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(_HOME / "host"))
    shutil.copy(_HOME / "id_ed25519.pub", _HOME / "authorized_keys")
    (_HOME / "config").write_text("BatchMode yes\nStrictHostKeyChecking accept-new\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    options = ("-oListenAddress=127.0.0.1", f"-oHostKey={_HOME / 'host'}", "-oPermitRootLogin=yes")
    with subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", "/dev/null", *options]) as server:
        try:
            eventually(lambda: ":22 " in sh("ss", "-Hltn"), "sshd listens")
            yield
        finally:
            server.terminate()
            server.wait()
            shutil.rmtree(_HOME)
