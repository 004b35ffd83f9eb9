# SPDX-License-Identifier: MIT
"""What is installed from elsewhere: pinned, by hash, and all of it in the bill of materials."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llmuxd
from tests import audit

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "packaging" / "llmuxd.cdx.json"
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
def test_the_bill_of_materials_is_the_same_each_time_and_kept(tmp_path: Path) -> None:
    for name in ("one", "two"):
        place = tmp_path / name
        make = ["make", "-C", str(ROOT), "sbom", f"CYCLONEDX={CYCLONEDX}", f"OUT={place}"]
        subprocess.run(make, check=True, capture_output=True)
    one = tmp_path / "one" / KEPT.name
    assert one.read_bytes() == (tmp_path / "two" / KEPT.name).read_bytes()
    assert one.read_bytes() == KEPT.read_bytes(), "make sbom"


def test_the_kept_bill_of_materials_has_all_that_is_pinned() -> None:
    bill = json.loads(KEPT.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    component = bill["metadata"]["component"]
    assert (component["name"], component["version"]) == ("llmuxd", llmuxd.__version__)
    listed = {each["name"]: each["version"] for each in bill["components"]}
    assert listed == pinned("requirements.txt")


def package(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "version": "1.0"} | more


def test_a_known_hole_is_found() -> None:
    hole = {"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"]}
    answers = [package("a", vulns=[hole]), package("b", vulns=[]), package("c", skip_reason="?")]
    found = audit.read(json.dumps({"dependencies": answers, "fixes": []}))
    assert found == audit.Findings(("a 1.0: PYSEC-1, mended in 1.1, 2.0",), asked=2, unknown=1)


def test_no_answer_is_not_taken_for_a_good_one() -> None:
    """pip-audit ends with 0 and finds nothing where nobody answered."""
    skipped = {"name": "a", "skip_reason": "not found on PyPI"}
    with pytest.raises(audit.NoData, match="not found on PyPI"):
        audit.read(json.dumps({"dependencies": [skipped]}))


@pytest.mark.parametrize(
    ("script", "why"),
    [("echo 'ConnectionError: no route' >&2; exit 1", "no route"), ("exit 1", "it said nothing")],
)
def test_where_it_fails_it_is_told(tmp_path: Path, script: str, why: str) -> None:
    with pytest.raises(audit.NoData, match=why):
        audit.run(pip_audit(tmp_path, script))


def pip_audit(tmp_path: Path, script: str) -> str:
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def answer(*vulns: str, of: str) -> str:
    holes = [{"id": name, "fix_versions": []} for name in vulns]
    return json.dumps({"dependencies": [package(of, vulns=holes)]})


def test_who_does_not_know_an_old_hole_is_not_believed(tmp_path: Path) -> None:
    """Asked of each before it is asked of ours, so that the check is known to go red."""
    knows_nothing = f"echo '{answer(of='any')}'"
    with pytest.raises(audit.NoData, match="does not know PYSEC"):
        audit.run(pip_audit(tmp_path, knows_nothing))
    script = f"""case "$*" in
        *--require-hashes*) echo '{answer("PYSEC-1", of="aiohttp")}';;
        *) echo '{answer(audit.HOLE, of="pyyaml")}';; esac"""
    assert audit.run(pip_audit(tmp_path, script)).holes == (
        "aiohttp 1.0: PYSEC-1, mended in no version",
    )
