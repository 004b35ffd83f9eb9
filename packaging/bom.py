# SPDX-License-Identifier: MIT
"""Writes a package's bill of materials beside it: PACKAGE.cdx.json for each RPM or .deb given.

A package contains llmuxd alone, each file with its hash. What it depends on the distribution gives,
in whichever version; so each of those is there by the name of the distribution's package, with the
wish of the package as it stands ("podman >= 4.5") for a property. The same bytes from the same
package. Standard library, and rpm or dpkg-deb.
"""

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

# CycloneDX's.
SPEC = "1.6"
_OS = Path("/etc/os-release")
# Requires that name no package: what rpm itself can do, the package's own parts, and files.
_NO_PACKAGE = re.compile(r"rpmlib\(|config\(|/|python\(abi\)")
_PYTHON = re.compile(r"python3(?:\.\d+)?dist\((.+)\)")
# Where Fedora's name is not python3-NAME.
_RENAMED = {"prometheus-client": "prometheus_client"}
_OF_RICH = {"and", "or", "if", "else", "unless", "with", "without"}


@dataclass(frozen=True)
class Package:
    """What a package says of itself; `wishes` as (field, text), `files` as (path, SHA-256)."""

    kind: str  # of purl
    name: str
    version: str
    architecture: str
    wishes: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]


def main(paths: Iterable[str]) -> int:
    """Write them, and say where."""
    for path in map(Path, paths):
        package = rpm(path) if path.suffix == ".rpm" else deb(path)
        beside = path.with_name(f"{path.name}.cdx.json")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        beside.write_text(json.dumps(bill(package, digest, distribution(package.kind)), indent=2))
        print(beside)
    return 0


def rpm(path: Path) -> Package:
    """An RPM, by rpm."""
    form = "%{NAME}\\n%{VERSION}-%{RELEASE}\\n%{ARCH}\\n"
    name, version, architecture = _run("rpm", "-qp", "--queryformat", form, path).split()
    wishes = [
        (field, wish)
        for field in ("requires", "recommends")
        for wish in _run("rpm", "-qp", f"--{field}", path).splitlines()
        if not _NO_PACKAGE.match(wish)
    ]
    files = _run("rpm", "-qp", "--queryformat", "[%{FILEDIGESTS} %{FILENAMES}\\n]", path)
    # A directory or a link has no digest.
    found = [(line.split(" ", 1)[1], line.split(" ", 1)[0]) for line in files.splitlines()]
    return Package("rpm", name, version, architecture, tuple(dict.fromkeys(wishes)), _hashed(found))


def deb(path: Path) -> Package:
    """A .deb, by dpkg-deb."""
    fields = ("Package", "Version", "Architecture", "Depends", "Recommends")
    lines = _run("dpkg-deb", "--field", path, *fields).splitlines()
    told = {key: value for key, _, value in (line.partition(": ") for line in lines)}
    wishes = [
        (field, wish)
        for field, key in (("requires", "Depends"), ("recommends", "Recommends"))
        for wish in told.get(key, "").split(", ")
    ]
    packed = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", path], check=True, stdout=subprocess.PIPE
    ).stdout
    files = []
    with tarfile.open(fileobj=io.BytesIO(packed)) as tree:
        for member in tree:
            content = tree.extractfile(member) if member.isfile() else None
            if content is not None:
                digest = hashlib.sha256(content.read()).hexdigest()
                files.append((member.name.removeprefix("."), digest))
    return Package(
        "deb", told["Package"], told["Version"], told["Architecture"], tuple(wishes), _hashed(files)
    )


def bill(package: Package, digest: str, distribution: str) -> dict[str, object]:
    """CycloneDX; `digest` is the package's SHA-256, `distribution` the one that gives the rest."""
    own = f"pkg:{package.kind}/{package.name}@{quote(package.version)}?arch={package.architecture}"
    given: dict[str, dict[str, object]] = {}
    for field, wish in package.wishes:
        for name in named(wish):
            purl = f"pkg:{package.kind}/{distribution}/{quote(name)}"
            component = given.setdefault(
                purl, {"type": "library", "bom-ref": purl, "name": name, "purl": purl}
            )
            properties = component.setdefault("properties", [])
            assert isinstance(properties, list)
            properties.append({"name": f"{package.kind}:{field}", "value": wish})
    files = [
        {"type": "file", "bom-ref": path, "name": path, "hashes": _hashes(content)}
        for path, content in package.files
    ]
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": package.name,
                "version": package.version,
                "purl": own,
                "hashes": _hashes(digest),
                "licenses": [{"license": {"id": "MIT"}}],
            }
        },
        "components": [*files, *given.values()],
        "dependencies": [{"ref": own, "dependsOn": sorted(given)}],
    }


def named(wish: str) -> list[str]:
    """The packages that a wish is about: "crun | runc", "(crun or runc)", "podman >= 4.5"."""
    bare = re.sub(r"\([<>=]+ [^)]*\)|[<>=]+ \S+", " ", wish)
    python = _PYTHON.search(bare)
    if python is not None:
        return [f"python3-{_RENAMED.get(python[1], python[1])}"]
    words = re.findall(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", bare)
    return [word for word in words if word not in _OF_RICH]


def distribution(kind: str) -> str:
    """Whose packages the rest comes from: this host's, if it has such packages.

    The spec is Fedora's wherever it is built.
    """
    lines = _OS.read_text(encoding="utf-8").splitlines() if _OS.exists() else []
    told = dict(line.split("=", 1) for line in lines if "=" in line)
    here = told.get("ID", "").strip('"')
    like = f"{here} {told.get('ID_LIKE', '')}"
    if kind == "deb":
        return here if "debian" in like else "debian"
    return {"rhel": "redhat"}.get(here, here) if re.search("fedora|rhel", like) else "fedora"


def _hashed(files: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((path, digest) for path, digest in files if digest))


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _run(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
