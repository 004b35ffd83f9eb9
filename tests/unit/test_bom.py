# SPDX-License-Identifier: MIT
"""The bill of materials of a package; of real ones in the machine's ring."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def bom() -> ModuleType:
    """packaging/bom.py; there is another package of the folder's name."""
    path = Path(__file__).parents[2] / "packaging" / "bom.py"
    spec = importlib.util.spec_from_file_location("bom", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        ("podman >= 4.5", ["podman"]),
        ("podman (>= 4.5)", ["podman"]),
        ("(crun or runc)", ["crun", "runc"]),
        ("libcriu2 | runc", ["libcriu2", "runc"]),
        ("(criu-libs if crun)", ["criu-libs", "crun"]),
        ("python3.14dist(aiohttp) >= 3.9", ["python3-aiohttp"]),
        ("python3dist(prometheus-client)", ["python3-prometheus_client"]),
    ],
)
def test_a_wish_names_packages(bom: ModuleType, wish: str, names: list[str]) -> None:
    assert bom.named(wish) == names


def a_bill(bom: ModuleType) -> dict[str, Any]:
    wishes = (("requires", "podman >= 4.5"), ("recommends", "(crun or runc)"), ("requires", "crun"))
    files = (("/usr/bin/llmuxd", "a" * 64),)
    package = bom.Package("rpm", "llmuxd", "1.0-1", "noarch", wishes, files)
    bill: dict[str, Any] = bom.bill(package, "b" * 64, "fedora")
    return bill


def test_a_bill_says_what_is_in_the_package_and_what_it_asks_for(bom: ModuleType) -> None:
    bill = a_bill(bom)
    file, podman, crun, runc = bill["components"]
    assert file["name"] == "/usr/bin/llmuxd" and file["hashes"][0]["content"] == "a" * 64
    assert podman["purl"] == "pkg:rpm/fedora/podman"
    assert [each["value"] for each in crun["properties"]] == ["(crun or runc)", "crun"]
    (needs,) = bill["dependencies"]
    assert needs["ref"] == "pkg:rpm/llmuxd@1.0-1?arch=noarch"
    assert needs["dependsOn"] == sorted(each["purl"] for each in (podman, crun, runc))


def test_a_bill_is_cyclonedx(bom: ModuleType) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.from_version(bom.SPEC))
    assert validator.validate_str(json.dumps(a_bill(bom))) is None


def test_what_names_no_package_is_not_asked_for(bom: ModuleType) -> None:
    for wish in ("rpmlib(PayloadIsZstd) <= 5.4.18-1", "/bin/sh", "config(llmuxd) = 1.0-1"):
        assert bom._NO_PACKAGE.match(wish)
