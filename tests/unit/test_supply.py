# SPDX-License-Identifier: MIT
"""What is installed from elsewhere: pinned, by hash, and all of it in the bill of materials."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CYCLONEDX = Path(sys.executable).with_name("cyclonedx-py")


def pinned(name: str) -> dict[str, str]:
    """Version by name of one of the files; each with hashes."""
    text = (ROOT / "packaging" / name).read_text(encoding="ascii")
    entries = re.findall(r"^(\S+)==(\S+).*((?:\n +--hash=sha256:[0-9a-f]{64}.*)+)$", text, re.M)
    assert len(entries) == len(re.findall(r"^\S", text, re.M))
    return {name: version for name, version, _ in entries}


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_every_dependency_is_pinned_new_enough() -> None:
    found = pinned("requirements.txt")
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name, _, least in (each.partition(">=") for each in asked):
        assert number(found[name]) >= number(least), name
    assert {"setuptools", "wheel"} <= pinned("build-requirements.txt").keys()


@pytest.mark.skipif(not CYCLONEDX.exists(), reason="there is no cyclonedx-py here")
def test_the_bill_of_materials_has_all_of_it_and_is_reproducible(tmp_path: Path) -> None:
    for name in ("one", "two"):
        place = tmp_path / name
        make = ["make", "-C", str(ROOT), "sbom", f"CYCLONEDX={CYCLONEDX}", f"OUT={place}"]
        subprocess.run(make, check=True, capture_output=True)
    (one,) = (tmp_path / "one").glob("*.cdx.json")
    assert one.read_bytes() == (tmp_path / "two" / one.name).read_bytes()
    bill = json.loads(one.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    component = bill["metadata"]["component"]
    assert f"{component['name']}-{component['version']}.cdx.json" == one.name
    listed = {each["name"]: each["version"] for each in bill["components"]}
    assert listed == pinned("requirements.txt")
