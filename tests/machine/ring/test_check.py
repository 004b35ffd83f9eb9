# SPDX-License-Identifier: MIT
"""llmuxctl check on a host from which one thing after the other is taken."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest

from .guest import OPT, QWEN, complete, configure, sh, two_fakes

FOREIGN = Path("/run/systemd/system/check-native.service")
NFTABLES = Path("/etc/nftables.conf")


def line(name: str) -> str:
    """The line, or lines, of that name."""
    said = sh("llmuxctl", "check", check=False).splitlines()
    return "\n".join(each for each in said if re.match(rf"\w+ +{name}  ", each))


@contextmanager
def moved(path: Path) -> Iterator[None]:
    """While it is elsewhere."""
    # Not a rename: an overlay does not rename what is in its lower layer.
    away = shutil.move(path, path.with_name(f"{path.name}.away"))
    try:
        yield
    finally:
        shutil.move(away, path)


def test_a_package_of_pythons() -> None:
    two_fakes()
    assert re.match(r"ok +python +3\..* pystemd 0\.", line("python"))
    own = metadata.distribution("pystemd")
    with moved(Path(str(own.locate_file(""))) / Path(str(own._path)).name):  # type: ignore[attr-defined]
        assert "fail  python           pystemd is not here: install pystemd" in line("python")


def test_the_table_of_networks_that_are_up() -> None:
    two_fakes()
    assert "whose table the first start loads" in line("network")
    assert complete(OPT).text
    assert "ok    network          closed by nftables: 2 internet" in line("network")
    sh("nft", "delete", "table", "inet", "llmux")
    assert "fail  network          the table inet llmux is gone" in line("network")
    sh("llmuxctl", "check", "--fix", "--yes")
    assert "llmuxi-" in sh("nft", "list", "table", "inet", "llmux")
    assert line("network").startswith("ok")


def test_a_ruleset_that_is_flushed_with_each_reload() -> None:
    two_fakes()
    assert line("firewall").startswith("ok")
    before = NFTABLES.read_bytes()
    sh("systemctl", "enable", "nftables.service")
    try:
        NFTABLES.write_text("flush ruleset\n")
        assert "warn  firewall         /etc/nftables.conf flushes the ruleset" in line("firewall")
        NFTABLES.write_text('flush ruleset\ninclude "/usr/share/llmuxd/*.nft"\n')
        assert line("firewall").startswith("ok")
    finally:
        sh("systemctl", "disable", "nftables.service")
        NFTABLES.write_bytes(before)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of root's on a tmpfs."""
    path = Path("/srv/check")
    path.mkdir(mode=0o755)
    sh("mount", "-t", "tmpfs", "-o", "mode=755,size=64g", "tmpfs", str(path))
    yield path
    sh("umount", str(path))
    path.rmdir()


def test_the_disk_of_checkpoint_dir(place: Path) -> None:
    images = place / "images"
    configure({OPT: {"checkpoint_dir": str(images)}, QWEN: {}})
    assert "in memory (tmpfs)" in line("disk") and line("disk").count("\n") == 1
    place.chmod(0o777)
    assert f"is not used: others than root may write to {place}" in line("disk")
    place.chmod(0o755)
    sh("mount", "-o", "remount,ro", str(place))
    assert f"fail  disk             {images} is mounted read-only" in line("disk")


@pytest.fixture
def foreign() -> Iterator[None]:
    """A model that a unit serves which is not there yet."""
    own = {"engine": "unit", "unit": FOREIGN.name, "port": 9124, "tier": "park"}
    configure({"native": own, QWEN: {"args": ["--model", QWEN]}})
    yield
    FOREIGN.unlink(missing_ok=True)
    sh("systemctl", "daemon-reload")


def written(*lines: str) -> None:
    FOREIGN.unlink(missing_ok=True)
    FOREIGN.write_text("\n".join(["[Service]", "ExecStart=/bin/sleep inf", *lines, ""]))
    sh("systemctl", "daemon-reload")


def test_a_unit_of_the_hosts_own(foreign: None) -> None:
    assert f"fail  unit             {FOREIGN.name}, which serves native, does not exist" in line(
        "unit"
    )
    written("Type=exec")
    assert line("unit") == f"ok    unit             {FOREIGN.name}, Type=exec"
    written("Type=oneshot")
    assert "has no main process" in line("unit")
    written("WatchdogSec=30")
    assert "would kill it while it is parked" in line("unit")
    written("Type=nonsense", "ExecStart=relative")
    assert line("unit").startswith("fail")
    FOREIGN.unlink()
    FOREIGN.symlink_to("/dev/null")
    sh("systemctl", "daemon-reload")
    assert "is masked: systemctl unmask" in line("unit")


def test_a_unit_of_the_hosts_own_that_is_frozen_or_enabled(foreign: None) -> None:
    written("Type=exec", "[Install]", "WantedBy=multi-user.target")
    sh("systemctl", "enable", "--runtime", FOREIGN.name)
    assert "is enabled, and starts beside" in line("unit")
    sh("systemctl", "disable", "--runtime", FOREIGN.name)
    sh("systemctl", "start", FOREIGN.name)
    sh("systemctl", "freeze", FOREIGN.name)
    try:
        assert f"is frozen, and cannot be started: systemctl thaw {FOREIGN.name}" in line("unit")
    finally:
        sh("systemctl", "thaw", FOREIGN.name)
        sh("systemctl", "stop", FOREIGN.name)
    assert line("unit").startswith("ok")
