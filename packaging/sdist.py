# SPDX-License-Identifier: MIT
"""Builds dist/llmuxd-VERSION.tar.gz: the same sources give the same bytes, whoever builds.

setuptools says what is in it (pyproject.toml, MANIFEST.in); what it lets vary is set here: the
order, the times, the owners, and the modes.
"""

import gzip
import hashlib
import io
import os
import sys
import tarfile
import tempfile
from pathlib import Path

from setuptools import build_meta

# Of every file, where the environment does not say (reproducible-builds.org); tar and gzip have
# no earlier day in common with zip, as which wheels are packed.
EPOCH = 315532800


def main() -> int:
    """Build it and say its hash, as sha256sum would."""
    top = Path(__file__).resolve().parents[1]
    os.chdir(top)
    place = Path("dist")
    place.mkdir(exist_ok=True)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))
    with tempfile.TemporaryDirectory() as work:
        # setuptools tells of each file.
        with Path(work, "log").open("w") as log:
            stdout, sys.stdout = sys.stdout, log
            try:
                name = build_meta.build_sdist(work)
            finally:
                sys.stdout = stdout
        archive = repacked(Path(work, name).read_bytes(), epoch)
    (place / name).write_bytes(archive)
    print(f"{hashlib.sha256(archive).hexdigest()}  {place / name}")
    return 0


def repacked(archive: bytes, epoch: int) -> bytes:
    """The same files, with nothing in the archive that depends on the builder."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as old,
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=epoch) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            fresh = tarfile.TarInfo(member.name)
            fresh.type, fresh.size, fresh.linkname = member.type, member.size, member.linkname
            fresh.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            fresh.mtime = epoch
            new.addfile(fresh, old.extractfile(member) if member.isfile() else None)
    return packed.getvalue()


if __name__ == "__main__":
    sys.exit(main())
