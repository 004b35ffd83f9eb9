# SPDX-License-Identifier: MIT
"""The packages: built, linted, installed, upgraded below a stream, erased without a trace."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest

from llmuxd import __version__, names, stored

from .guest import (
    CONFIG,
    OPT,
    QWEN,
    complete,
    counter,
    eventually,
    fails,
    journal,
    leftovers,
    record,
    sh,
    stream,
    two_fakes,
    unit,
)

CHECKOUT = Path("/usr/src/llmuxd")
WORK = Path("/var/tmp/llmux-package")
STATE = Path("/var/lib/llmux")
IMAGES = Path("/srv/llmux-fast/images")
RETIRED = Path("/usr/lib/python3/dist-packages/llmuxd/retired.py")
# What Debian's packages are of what the RPMs require, which are not in RPM's database.
GIVEN = {
    "podman": "podman",
    "netavark": "netavark",
    "nftables": "nftables",
    "crun": "crun",
    "criu": "criu",
    "criu-libs": "libcriu2",
    "iptables-nft": "iptables",
    "systemd": "systemd",
    "/bin/sh": "dash",
    "/usr/bin/python3": "python3-minimal",
    "python3.{minor}dist(aiohttp)": "python3-aiohttp",
    "python3.{minor}dist(dbus-next)": "python3-dbus-next",
    "python3.{minor}dist(prometheus-client)": "python3-prometheus-client",
    "python3.{minor}dist(pystemd)": "python3-pystemd",
    "python3.{minor}dist(pyyaml)": "python3-yaml",
    "python3.{minor}dist(sdnotify)": "python3-sdnotify",
}
PROVIDER = "debian-provides"
BUILD_SECONDS = 500.0
# Tokens, 20 a second: more than either package manager takes until it restarts llmuxd.
STREAMED = 600
OLDER = "0.0.9"
# What an older release may have had, by its file: what stands there now, and what stood there then.
# A later release reads an older one's state, and makes its containers in another form.
THEN = {
    "llmuxd/__init__.py": (r'__version__ = ".*"', f'__version__ = "{OLDER}"'),
    "llmuxd/stored.py": (r"(?m)^FORM = \d+", "FORM = 1"),
    "llmuxd/config.py": (r"(?m)^CONTAINER_FORM = \d+", "CONTAINER_FORM = 1"),
    "packaging/rpm/llmuxd.spec": (r"(?m)^(Version: +)\S+", rf"\g<1>{OLDER}"),
    "packaging/llmux.yaml": (r"\A", "# As it was.\n"),
    "systemd/llmuxd.service": (r"(?m)^Description=.*", "Description=As it was"),
    "systemd/llmux-model@.service": (r"(?m)^Description=.*", "Description=As it was"),
    "dbus/org.llmux.policy": (r"(?s)<message>.*?</message>", "<message>As it was.</message>"),
    "dbus/org.llmux.conf": (r'.*send_interface="org.llmux.Manager"/>\n', ""),
}


@dataclass(frozen=True)
class Built:
    """This release, and what one before it may have been."""

    older: Path
    this: Path

    provider: Path

    def packages(self, directory: Path) -> list[str]:
        """The RPMs of one of them."""
        return sorted(str(path) for path in (directory / "dist").glob("*.rpm"))


def checkout(name: str) -> Path:
    """A copy that can be built in; the checkout here is read-only."""
    copy = WORK / name
    never = shutil.ignore_patterns(".git", ".venv", "__pycache__", "/build", "/dist")
    shutil.copytree(CHECKOUT, copy, ignore=never, symlinks=True, copy_function=shutil.copyfile)
    return copy


def older() -> Path:
    """A copy of what an older release may have been, with a module that this one has no more."""
    copy = checkout("older")
    for name, (now, then) in THEN.items():
        text, changed = re.subn(now, then, (copy / name).read_text(encoding="utf-8"))
        assert changed, name
        (copy / name).write_text(text, encoding="utf-8")
    (copy / "llmuxd" / RETIRED.name).touch()
    return copy


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    """Built without %check, of which there is a test."""
    shutil.rmtree(WORK, ignore_errors=True)
    copies = older(), checkout("this")
    for copy in copies:
        sh("make", "-C", str(copy), "rpm", "RPMBUILD=--without tests")
    yield Built(*copies, provider(GIVEN))
    shutil.rmtree(WORK)


@pytest.fixture
def bare(built: Built) -> Iterator[set[Path]]:
    """A host without llmuxd; the files that it has. Gets the checkout installed again."""
    for bytecode in Path("/usr/lib/python3/dist-packages/llmuxd").rglob("__pycache__"):
        shutil.rmtree(bytecode)
    sh("systemctl", "stop", "llmuxd.socket", "llmuxd.service")
    # Who went by the README before has enabled them.
    sh("systemctl", "disable", "llmuxd.socket", "llmuxd.service")
    for name in sh("rpm", "-qlp", *built.packages(built.this)).splitlines():
        if Path(name).is_file() or Path(name).is_symlink():
            Path(name).unlink()
    # An older release refuses what a newer one has kept there.
    shutil.rmtree(STATE, ignore_errors=True)
    sh("systemctl", "daemon-reload")
    try:
        yield files()
    finally:
        sh("rpm", "--erase", "llmuxd", "llmuxd-nvidia", check=False)
        sh("rpm", "--erase", PROVIDER, check=False)
        sh("dpkg", "--purge", "llmuxd", check=False)
        for path in beside_the_configuration():
            path.unlink()
        shutil.rmtree(IMAGES.parent, ignore_errors=True)
        sh("make", "-C", str(built.this), "install")
        sh("systemctl", "daemon-reload")
        sh("systemctl", "disable", "llmuxd.socket")
        sh("systemctl", "reload", "dbus.service")


def provider(given: dict[str, str]) -> Path:
    """An empty RPM that provides, in the versions of Debian's packages, what they are."""
    minor = sys.version_info.minor
    lines = []
    for name, package in given.items():
        version = sh("dpkg-query", "--show", "--showformat=${Version}", package)
        upstream = version.rpartition(":")[2].rpartition("-")[0]
        is_file = name.startswith("/")
        lines.append(f"Provides: {name.format(minor=minor)}{'' if is_file else f' = {upstream}'}")
    place = Path(tempfile.mkdtemp(dir=WORK))
    spec = place / f"{PROVIDER}.spec"
    tags = ("Name: " + PROVIDER, "Version: 1", "Release: 1", "Summary: Debian", "License: none")
    text = [*tags, "BuildArch: noarch", *lines, "%description", "Debian's packages.", "%files", ""]
    spec.write_text("\n".join(text))
    sh("rpmbuild", "-bb", "--define", f"_topdir {place}", str(spec))
    (built,) = (place / "RPMS/noarch").glob("*.rpm")
    return built


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
    rules = built.this / "packaging/rpm/llmuxd.rpmlintrc"
    spec = built.this / "packaging/rpm/llmuxd.spec"
    said = sh("rpmlint", "-r", str(rules), *built.packages(built.this), str(spec))
    assert " 0 errors, 0 warnings" in said, said


def test_a_host_of_red_hats_without_its_macros_builds_nothing(built: Built) -> None:
    """What came of it would have Debian's paths."""
    argv = ("make", "-C", str(built.this), "rpm", "RED_HAT=/etc/redhat-release")
    before = built.packages(built.this)
    _, said = fails(*argv, "RPMBUILD=--nobuild")
    assert "pyproject-rpm-macros is missing: dnf builddep" in said
    assert built.packages(built.this) == before


def test_the_package_has_what_make_install_installs(built: Built) -> None:
    root = WORK / "root"
    sh("make", "-C", str(built.this), "install", f"DESTDIR={root}", "PREFIX=/usr")
    made = {f"/{path.relative_to(root)}" for path in root.rglob("*") if not path.is_dir()}
    packed = set(sh("rpm", "-qlp", *built.packages(built.this)).splitlines())
    # rpmbuild compresses manual pages; pip notes where it took the wheel from.
    packed = {name.removesuffix(".gz") for name in packed}
    assert {name for name in made if "dist-packages" not in name} <= packed
    code = {name for name in made if "/llmuxd/" in name and name.endswith(".py")}
    assert code and code <= packed


def test_the_sources_are_packed_the_same_each_time(built: Built) -> None:
    copy = checkout("again")
    sh("sh", "-c", f"find {copy} -exec touch --date=2001-01-01 {{}} + && chmod -R g+w {copy}")
    sh("make", "-C", str(copy), "sdist")
    (one,) = (built.this / "dist").glob("*.tar.gz")
    (other,) = (copy / "dist").glob("*.tar.gz")
    assert one.read_bytes() == other.read_bytes()


def test_the_bill_of_materials_is_in_the_sources_and_beside_what_is_built(built: Built) -> None:
    kept = (CHECKOUT / "packaging/llmuxd.cdx.json").read_bytes()
    beside = built.this / "dist" / f"llmuxd-{__version__}.cdx.json"
    assert beside.read_bytes() == kept
    (archive,) = (built.this / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        packed = sources.extractfile(f"llmuxd-{__version__}/packaging/llmuxd.cdx.json")
        assert packed is not None and packed.read() == kept


def freshly_installed() -> None:
    """Enabled as the preset says, and not started."""
    assert sh("systemctl", "is-enabled", "llmuxd.socket") == "enabled"
    assert sh("systemctl", "is-enabled", "llmuxd.service", check=False) == "disabled"
    assert sh("systemctl", "is-active", "llmuxd.socket", check=False) == "inactive"


def beside_the_configuration() -> set[Path]:
    """What a package manager put there."""
    return set(CONFIG.parent.glob("llmux.yaml?*"))


def as_nobody(*argv: str) -> bool:
    """Whether somebody without rights can do that."""
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    return subprocess.run([*user, *argv], capture_output=True, check=False).returncode == 0


def may_list_models() -> bool:
    return as_nobody("busctl", "call", "org.llmux", "/Manager", "org.llmux.Manager", "ListModels")


def polkit_says() -> str:
    return sh("pkaction", "--verbose", "--action-id=org.llmux.switch")


def described(name: str) -> str:
    """systemd has read the unit's file; what that says of itself."""
    assert sh("systemctl", "show", "-P", "NeedDaemonReload", name) == "no"
    return sh("systemctl", "show", "-P", "Description", name)


def the_older_one_serves(again: list[str]) -> None:
    """With a configuration of the host's own, which another installation of it leaves alone."""
    two_fakes(checkpoint_dir=str(IMAGES))
    configured = CONFIG.read_text()
    assert complete(QWEN).text
    sh(*again)
    assert CONFIG.read_text() == configured and beside_the_configuration() == set()
    assert complete(OPT).text
    assert Path(record(QWEN)["place"]).parent == IMAGES
    assert described("llmuxd.service") == described(names.unit(OPT)) == "As it was"
    assert not may_list_models() and "As it was" in polkit_says()
    assert sh("llmuxctl", "version").count(OLDER) == 2 and RETIRED.exists()


def waits_for_its_requests(daemon: str) -> bool:
    """Whether that llmuxd was told to go and is still here."""
    shown = sh("systemctl", "show", "-P", "ActiveState", "-P", "MainPID", "llmuxd.service")
    return set(shown.split()) == {"deactivating", daemon}


def upgrade_below_a_stream(upgrade: list[str]) -> None:
    """The stream goes on, its server stays, llmuxd comes back, the configuration is kept."""
    configured = CONFIG.read_text()
    server, daemon = unit(OPT, "MainPID"), sh("systemctl", "show", "-P", "MainPID", "llmuxd")
    with stream(OPT, STREAMED, seconds_per_token=0.05) as tokens:
        next(tokens)
        upgrading = subprocess.Popen(upgrade)
        before = list(takewhile(lambda _: not waits_for_its_requests(daemon), tokens))
        seen = time.monotonic()
        during = list(tokens)
        lasted = time.monotonic() - seen
    assert during and during[-1] == "[DONE]", "the stream was over before llmuxd was told to go"
    # One was taken to see that llmuxd goes.
    assert len(before) + 1 + len(during) >= STREAMED
    # The last ones came one by one, not from a buffer.
    assert lasted > 1, f"{len(during)} tokens in {lasted:.2f} s"
    assert upgrading.wait(60) == 0
    assert sh("systemctl", "show", "-P", "MainPID", "llmuxd") not in ("0", daemon)
    assert complete(OPT).text
    assert (unit(OPT, "MainPID"), counter(OPT)) == (server, 3)
    assert CONFIG.read_text() == configured


def this_one_is_in_force(new: Path) -> None:
    """Its programs, and all that others read; the packaged configuration lies beside the host's."""
    assert sh("llmuxctl", "version").count(__version__) == 2
    for name in ("llmuxd.service", names.unit(OPT)):
        assert described(name) not in ("", "As it was")
    eventually(may_list_models, "the bus has the new policy")
    eventually(lambda: "As it was" not in polkit_says(), "polkit has the new actions")
    assert beside_the_configuration() == {new}
    assert new.read_text() == (CHECKOUT / "packaging/llmux.yaml").read_text()
    assert not RETIRED.exists()
    form = json.loads((STATE / "form.json").read_text())["form"]
    assert form == stored.FORM


def models_go_on_from_there() -> None:
    """Each starts cold once, for its container is of another form, and is then restored again."""
    ways = [complete(model).headers["X-LLMux-Activation"] for model in (QWEN, OPT, QWEN, OPT)]
    assert ways == ["cold", "cold", "restore", "restore"]


def nothing_is_left(bare: set[Path], but: set[Path]) -> None:
    """No file, unit, process, port, container or network."""
    assert files() - bare == but
    assert bare - files() == set()
    assert sh("systemctl", "list-units", "--all", "--plain", "--no-legend", "llmux*") == ""
    assert sh("podman", "ps", "--all", "--quiet") == ""
    assert sh("podman", "network", "ls", "--quiet") == "podman"
    assert "table inet llmux" not in sh("nft", "list", "tables")
    assert list(IMAGES.iterdir()) == []
    assert leftovers() == []


def nobody_wrote_an_image_for_it() -> None:
    """The model that served was ended as it stood."""
    told = re.findall(r"^gone after .*\((\w+),", journal(names.unit(OPT)), re.MULTILINE)
    assert told[-1] == "stop", told


def a_host_includes_the_rules() -> str:
    """The tables of a host that has in its nftables.conf what the README says."""
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"`(include \"[^`]*)`", readme)
    conf = WORK / "nftables.conf"
    conf.write_text(f"flush ruleset\n{line}\n", encoding="ascii")
    return sh("unshare", "--net", "sh", "-c", f"nft --file {conf} && nft list tables")


def installed_again_and_upgraded_as_it_was_left(package: str) -> None:
    """Enabled anew after a removal; what somebody disables then stays so in an upgrade."""
    sh("dpkg", "--force-confold", "--install", package)
    freshly_installed()
    sh("systemctl", "disable", "llmuxd.socket")
    sh("dpkg", "--force-confold", "--install", package)
    assert sh("systemctl", "is-enabled", "llmuxd.socket", check=False) == "disabled"
    sh("dpkg", "--remove", "llmuxd")


def test_an_rpm_is_refused_where_something_that_it_requires_is_missing(
    built: Built, bare: set[Path]
) -> None:
    """Each of them is asked for by one of the packages; nothing is installed by halves."""
    packages = built.packages(built.this)
    asked = sh("rpm", "-qp", "--requires", *packages)
    assert not [name for name in GIVEN if name.format(minor=sys.version_info.minor) not in asked]
    for name in ("criu", "nftables", "python3.{minor}dist(aiohttp)"):
        short = provider({each: GIVEN[each] for each in GIVEN if each != name})
        _, said = fails("rpm", "--install", str(short), *packages)
        wanted = name.format(minor=sys.version_info.minor)
        assert re.findall(r"^\s+(\S+).* is needed by", said, re.M) == [wanted] and wanted in asked
    assert files() == bare and sh("rpm", "-qa") == ""


def test_the_bill_of_materials_of_a_package_is_of_that_package(built: Built) -> None:
    """Each file of it with its hash, and what the distribution is to give."""
    packages = [Path(path) for path in built.packages(built.this)]
    for package in packages:
        bill = json.loads(package.with_name(f"{package.name}.cdx.json").read_text())
        component = bill["metadata"]["component"]
        assert component["hashes"][0]["content"] == hashed(package)
        listed = {each["name"]: each["hashes"] for each in bill["components"] if "hashes" in each}
        query = ("rpm", "-qp", "--queryformat", "[%{FILEMODES:perms} %{FILENAMES}\n]", str(package))
        plain = [line.split(" ", 1)[1] for line in sh(*query).splitlines() if line[0] == "-"]
        assert set(listed) == set(plain)
    main = json.loads(packages[0].with_name(f"{packages[0].name}.cdx.json").read_text())
    asked = {each["purl"] for each in main["components"] if "purl" in each}
    assert {"pkg:rpm/fedora/podman", "pkg:rpm/fedora/criu", "pkg:rpm/fedora/crun"} <= asked
    assert "pkg:rpm/fedora/python3-aiohttp" in asked
    source = CHECKOUT / "llmuxd/daemon.py"
    (there,) = (each for each in main["components"] if each["name"].endswith("/llmuxd/daemon.py"))
    assert there["hashes"] == [{"alg": "SHA-256", "content": hashed(source)}]


def hashed(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_life_of_the_rpm(built: Built, bare: set[Path]) -> None:
    older, this = built.packages(built.older), built.packages(built.this)
    sh("rpm", "--install", str(built.provider))
    sh("rpm", "--install", *older)
    freshly_installed()
    assert sh("rpm", "--verify", "llmuxd", "llmuxd-nvidia") == ""
    the_older_one_serves(["rpm", "--upgrade", "--replacepkgs", *older])
    upgrade_below_a_stream(["rpm", "--upgrade", *this])
    assert sh("rpm", "-q", "llmuxd").startswith(f"llmuxd-{__version__}-1")
    new, kept = (CONFIG.with_name(f"llmux.yaml.{suffix}") for suffix in ("rpmnew", "rpmsave"))
    this_one_is_in_force(new)
    models_go_on_from_there()
    assert a_host_includes_the_rules() == "table inet llmux"
    sh("rpm", "--erase", "llmuxd", "llmuxd-nvidia")
    sh("rpm", "--erase", PROVIDER)
    nothing_is_left(bare, {new, kept})
    nobody_wrote_an_image_for_it()
    assert a_host_includes_the_rules() == ""
    assert "llmuxd was removed" in record(OPT)["invalid"]


def test_life_of_the_debian_package(built: Built, bare: set[Path]) -> None:
    """dpkg holds it against the packages here that it depends on."""
    CONFIG.unlink(missing_ok=True)
    bare = files()
    for copy in (built.older, built.this):
        sh("make", "-C", str(copy), "deb")
    (older,), (this,) = (list((copy / "dist").glob("*.deb")) for copy in (built.older, built.this))
    bill = json.loads(this.with_name(f"{this.name}.cdx.json").read_text())
    assert bill["metadata"]["component"]["hashes"][0]["content"] == hashed(this)
    wanted = {"pkg:deb/debian/podman", "pkg:deb/debian/python3-aiohttp", "pkg:deb/debian/runc"}
    assert wanted <= {each.get("purl") for each in bill["components"]}
    (there,) = (each for each in bill["components"] if each["name"].endswith("/llmuxd/daemon.py"))
    assert there["hashes"][0]["content"] == hashed(CHECKOUT / "llmuxd/daemon.py")
    sh("dpkg", "--install", str(older))
    freshly_installed()
    # The machine is built without anything to read, and its dpkg goes on leaving it out.
    amiss = sh("dpkg", "--verify", "llmuxd").splitlines()
    assert [line for line in amiss if not re.search("/usr/share/(man|doc)/", line)] == []
    the_older_one_serves(["dpkg", "--install", str(older)])
    upgrade_below_a_stream(["dpkg", "--force-confold", "--install", str(this)])
    version = sh("dpkg-query", "--show", "--showformat=${Version}", "llmuxd")
    assert version == f"{__version__}-1"
    new = CONFIG.with_name("llmux.yaml.dpkg-dist")
    this_one_is_in_force(new)
    models_go_on_from_there()
    assert a_host_includes_the_rules() == "table inet llmux"
    sh("dpkg", "--remove", "llmuxd")
    nothing_is_left(bare, {CONFIG, new})
    nobody_wrote_an_image_for_it()
    assert a_host_includes_the_rules() == ""
    assert "llmuxd was removed" in record(OPT)["invalid"]
    installed_again_and_upgraded_as_it_was_left(str(this))
    sh("dpkg", "--purge", "llmuxd")
    nothing_is_left(bare, set())
    assert not STATE.exists()
