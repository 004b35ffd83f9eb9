# SPDX-License-Identifier: MIT
"""The packages: built, linted, installed, upgraded below a stream, erased without a trace."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .guest import CONFIG, OPT, complete, counter, leftovers, sh, stream, two_fakes, unit

CHECKOUT = Path("/usr/src/llmuxd")
WORK = Path("/var/tmp/llmux-package")
# Debian's packages, which it depends on, are not in RPM's database.
RPM = ("rpm", "--nodeps")
BUILD_SECONDS = 500.0


@dataclass(frozen=True)
class Built:
    """Two builds of one source; the second differs by its release."""

    first: Path
    second: Path

    def packages(self, directory: Path) -> list[str]:
        """The RPMs of one of them."""
        return sorted(str(path) for path in (directory / "dist").glob("*.rpm"))


def checkout(name: str) -> Path:
    """A copy that can be built in; the checkout here is read-only."""
    copy = WORK / name
    never = shutil.ignore_patterns(".git", ".venv", "__pycache__", "/build", "/dist")
    shutil.copytree(CHECKOUT, copy, ignore=never, symlinks=True, copy_function=shutil.copyfile)
    return copy


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    """Built without %check, of which there is a test."""
    shutil.rmtree(WORK, ignore_errors=True)
    both = Built(checkout("first"), checkout("second"))
    spec = both.second / "packaging/rpm/llmuxd.spec"
    spec.write_text(spec.read_text().replace("Release:        1", "Release:        2"))
    for copy in (both.first, both.second):
        sh("make", "-C", str(copy), "rpm", "RPMBUILD=--without tests")
    yield both
    shutil.rmtree(WORK)


@pytest.fixture
def bare(built: Built) -> Iterator[set[Path]]:
    """A host without llmuxd; the files that it has. Gets the checkout installed again."""
    for bytecode in Path("/usr/lib/python3/dist-packages/llmuxd").rglob("__pycache__"):
        shutil.rmtree(bytecode)
    sh("systemctl", "stop", "llmuxd.socket", "llmuxd.service")
    # Who went by the README before has enabled them.
    sh("systemctl", "disable", "llmuxd.socket", "llmuxd.service")
    for name in sh("rpm", "-qlp", *built.packages(built.first)).splitlines():
        if Path(name).is_file() or Path(name).is_symlink():
            Path(name).unlink()
    sh("systemctl", "daemon-reload")
    try:
        yield files()
    finally:
        sh("rpm", "--erase", "llmuxd", "llmuxd-nvidia", check=False)
        sh("dpkg", "--purge", "llmuxd", check=False)
        CONFIG.with_name("llmux.yaml.rpmsave").unlink(missing_ok=True)
        sh("make", "-C", str(built.first), "install")
        sh("systemctl", "daemon-reload")
        sh("systemctl", "disable", "llmuxd.socket")
        sh("systemctl", "reload", "dbus.service")


def files() -> set[Path]:
    """Every file of the places where a package may put one."""
    places = ("/usr", "/etc", "/run/llmux", "/run/systemd/system")
    return {
        path
        for place in places
        for path in Path(place).rglob("*")
        if not path.is_relative_to(CHECKOUT) and not path.is_dir()
    }


def test_the_check_of_the_rpm_is_the_unit_ring(built: Built) -> None:
    copy = checkout("checked")
    said = sh("make", "-C", str(copy), "rpm", timeout=BUILD_SECONDS)
    assert re.search(r"\d{3,} passed", said), said


def test_rpmlint_has_nothing_to_say(built: Built) -> None:
    rules = built.first / "packaging/rpm/llmuxd.rpmlintrc"
    spec = built.first / "packaging/rpm/llmuxd.spec"
    said = sh("rpmlint", "-r", str(rules), *built.packages(built.first), str(spec))
    assert " 0 errors, 0 warnings" in said, said


def test_the_package_has_what_make_install_installs(built: Built) -> None:
    root = WORK / "root"
    sh("make", "-C", str(built.first), "install", f"DESTDIR={root}", "PREFIX=/usr")
    made = {f"/{path.relative_to(root)}" for path in root.rglob("*") if not path.is_dir()}
    packed = set(sh("rpm", "-qlp", *built.packages(built.first)).splitlines())
    # rpmbuild compresses manual pages; pip notes where it took the wheel from.
    packed = {name.removesuffix(".gz") for name in packed}
    assert {name for name in made if "dist-packages" not in name} <= packed
    code = {name for name in made if "/llmuxd/" in name and name.endswith(".py")}
    assert code and code <= packed


def test_the_sources_are_packed_the_same_each_time(built: Built) -> None:
    copy = checkout("again")
    sh("sh", "-c", f"find {copy} -exec touch --date=2001-01-01 {{}} + && chmod -R g+w {copy}")
    sh("make", "-C", str(copy), "sdist")
    (one,) = (built.first / "dist").glob("*.tar.gz")
    (other,) = (copy / "dist").glob("*.tar.gz")
    assert one.read_bytes() == other.read_bytes()


def freshly_installed() -> None:
    """Enabled as the preset says, and not started."""
    assert sh("systemctl", "is-enabled", "llmuxd.socket") == "enabled"
    assert sh("systemctl", "is-enabled", "llmuxd.service", check=False) == "disabled"
    assert sh("systemctl", "is-active", "llmuxd.socket", check=False) == "inactive"


def upgrade_below_a_stream(upgrade: list[str]) -> None:
    """The stream goes on, its server stays, llmuxd comes back, the configuration is kept."""
    two_fakes()
    configured = CONFIG.read_text()
    assert complete(OPT).text
    server, daemon = unit(OPT, "MainPID"), sh("systemctl", "show", "-P", "MainPID", "llmuxd")
    with stream(OPT, 60, seconds_per_token=0.05) as tokens:
        next(tokens)
        upgrading = subprocess.Popen(upgrade)
        rest = list(tokens)
    assert rest[-1] == "[DONE]" and len(rest) >= 60
    assert upgrading.wait(60) == 0
    assert sh("systemctl", "show", "-P", "MainPID", "llmuxd") not in ("0", daemon)
    assert complete(OPT).text
    assert (unit(OPT, "MainPID"), counter(OPT)) == (server, 3)
    assert CONFIG.read_text() == configured


def nothing_is_left(bare: set[Path], but: set[Path]) -> None:
    """No file, unit, process, port, container or network."""
    assert files() - bare == but
    assert bare - files() == set()
    assert sh("systemctl", "list-units", "--all", "--plain", "--no-legend", "llmux*") == ""
    assert sh("podman", "ps", "--all", "--quiet") == ""
    assert sh("podman", "network", "ls", "--quiet") == "podman"
    assert "table inet llmux" not in sh("nft", "list", "tables")
    assert leftovers() == []


def test_life_of_the_rpm(built: Built, bare: set[Path]) -> None:
    sh(*RPM, "--install", *built.packages(built.first))
    freshly_installed()
    assert sh("rpm", "--verify", "--nodeps", "llmuxd", "llmuxd-nvidia") == ""
    upgrade_below_a_stream([*RPM, "--upgrade", *built.packages(built.second)])
    assert sh("rpm", "-q", "llmuxd").startswith("llmuxd-0.1.0-2")
    sh("rpm", "--erase", "llmuxd", "llmuxd-nvidia")
    nothing_is_left(bare, {CONFIG.with_name("llmux.yaml.rpmsave")})
    assert Path("/var/lib/llmux").is_dir()


def test_life_of_the_debian_package(built: Built, bare: set[Path]) -> None:
    """dpkg holds it against the packages here that it depends on."""
    CONFIG.unlink(missing_ok=True)
    bare = files()
    for number, copy in enumerate((built.first, built.second), 1):
        control = copy / "packaging/deb/control"
        control.write_text(control.read_text().replace("@version@-1", f"@version@-{number}"))
        sh("make", "-C", str(copy), "deb")
    (first,), (second,) = (
        list((copy / "dist").glob("*.deb")) for copy in (built.first, built.second)
    )
    sh("dpkg", "--install", str(first))
    freshly_installed()
    # The machine is built without anything to read, and its dpkg goes on leaving it out.
    amiss = sh("dpkg", "--verify", "llmuxd").splitlines()
    assert [line for line in amiss if not re.search("/usr/share/(man|doc)/", line)] == []
    upgrade_below_a_stream(["dpkg", "--force-confold", "--install", str(second)])
    assert sh("dpkg-query", "--show", "--showformat=${Version}", "llmuxd") == "0.1.0-2"
    sh("dpkg", "--remove", "llmuxd")
    nothing_is_left(bare, {CONFIG})
    assert Path("/var/lib/llmux").is_dir()
    sh("dpkg", "--purge", "llmuxd")
    nothing_is_left(bare, set())
    assert not Path("/var/lib/llmux").exists()
