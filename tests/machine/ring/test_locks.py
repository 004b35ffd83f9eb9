# SPDX-License-Identifier: MIT
"""The units' locks: how tight systemd finds them, and that each one holds."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmuxd import names

from .guest import OPT, complete, counter, sh, two_fakes, unit

# Ten times systemd's own number.
EXPOSURE = 15
DROP_IN = Path("/run/systemd/system/llmuxd.service.d/probe.conf")
TOLD = Path("/run/llmux-probe.json")
PROBE = f"""\
[Service]
Type=oneshot
Restart=no
ExecStart=
ExecStart=/usr/bin/python3 -P -B {Path(__file__).with_name("probe.py")}
StandardOutput=truncate:{TOLD}
"""
ELSEWHERE = ("10.89.7.1/32", "192.0.2.1/32", "192.168.7.1/32", "10.7.7.1/32")
WORK = {
    "write /run/llmux",
    "write /var/lib/llmux",
    "read the configuration",
    "read /proc/meminfo",
    "connect to the bus",
    "send to podman's network",
}


@pytest.fixture
def probe() -> Iterator[dict[str, str]]:
    """What the probe could do in llmuxd's place."""
    two_fakes()
    sh("systemctl", "stop", "llmuxd.socket", "llmuxd.service")
    # Addresses that are not loopback's, on this machine that has no other network.
    for address in ELSEWHERE:
        sh("ip", "address", "add", address, "dev", "lo")
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(PROBE, encoding="ascii")
    sh("systemctl", "daemon-reload")
    try:
        sh("systemctl", "start", "llmuxd.service")
        yield json.loads(TOLD.read_text(encoding="utf-8"))
    finally:
        DROP_IN.unlink()
        TOLD.unlink(missing_ok=True)
        sh("systemctl", "daemon-reload")
        for address in ELSEWHERE:
            sh("ip", "address", "delete", address, "dev", "lo")


@pytest.mark.parametrize("name", ["llmuxd.service", "llmux-gpus.service"])
def test_exposure_is_low(name: str) -> None:
    sh("systemd-analyze", "security", "--no-pager", f"--threshold={EXPOSURE}", name)


def test_llmuxd_can_do_its_work_and_nothing_else(probe: dict[str, str]) -> None:
    assert {name for name, told in probe.items() if told == "done"} == WORK
    # Let through, and nobody there.
    assert probe["connect to loopback"] == "ECONNREFUSED"
    closed = ("send elsewhere", "send to the host's network", "send to another of its networks")
    assert {probe[name] for name in closed} == {"EPERM"}


def test_a_network_that_is_none_of_podmans_own_is_reached_once_it_is_allowed() -> None:
    """As the README says."""
    sh("podman", "network", "create", "--subnet", "192.168.60.0/24", "elsewhere")
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    try:
        two_fakes(podman_args=["--network=elsewhere"])
        answer = complete(OPT)
        assert answer.status == 502 and b"it took no connection in 10 s" in answer.body
        DROP_IN.write_text("[Service]\nIPAddressAllow=192.168.60.0/24\n", encoding="ascii")
        sh("systemctl", "daemon-reload")
        sh("systemctl", "restart", "llmuxd.service")
        assert complete(OPT).text
    finally:
        DROP_IN.unlink(missing_ok=True)
        sh("systemctl", "daemon-reload")
        sh("systemctl", "stop", names.unit(OPT))
        sh("podman", "rm", "--all", "--force", "--time", "0")
        sh("podman", "network", "rm", "elsewhere")


def test_llmuxd_has_no_capability() -> None:
    two_fakes()
    pid = sh("systemctl", "show", "-P", "MainPID", "llmuxd.service")
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_a_models_unit_has_no_capability_to_spare() -> None:
    two_fakes()
    assert complete(OPT).text
    kept = set(unit(OPT, "CapabilityBoundingSet").split())
    assert {"cap_sys_admin", "cap_sys_ptrace"} <= kept
    spared = {"cap_sys_boot", "cap_sys_module", "cap_sys_rawio", "cap_syslog", "cap_perfmon"}
    assert not kept & spared


_ASK = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(open("/proc/1/status").read())
libc.syscall(425, 1, bytes(256))
print("io_uring:", ctypes.get_errno())
try:
    open("/usr/probe", "w").close()
    print("image: writable")
except OSError as error:
    print("image:", error.errno)
"""


def inside(model: str) -> dict[str, str]:
    """What holds in the model's container."""
    said = sh("podman", "exec", names.container(model), "python3", "-c", _ASK)
    return {
        key: value.strip() for key, _, value in (line.partition(":") for line in said.splitlines())
    }


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ({}, {"NoNewPrivs": "1", "CapEff": "00000000800405fb", "image": "writable"}),
        (
            {"engine": "llama-server", "canary": False},
            {"NoNewPrivs": "1", "image": str(errno.EROFS)},
        ),
        ({"privileged": True}, {"NoNewPrivs": "0", "image": "writable"}),
    ],
    ids=["plain", "read-only", "privileged"],
)
def test_a_container_is_locked_and_so_it_is_restored(
    setting: dict[str, Any], wanted: dict[str, str]
) -> None:
    two_fakes(**setting)
    text = complete(OPT).text
    locks = {"Seccomp": "2", "io_uring": str(errno.ENOSYS)} | wanted
    before = inside(OPT)
    assert {key: before[key] for key in locks} == locks
    sh("llmuxctl", "checkpoint", OPT)
    assert complete(OPT).text == text
    assert counter(OPT) == 2
    after = inside(OPT)
    # Whoever is let in by podman exec has no filter after a restore (crun 1.28); the server has.
    same = {*locks, "CapEff", "CapBnd", "Seccomp_filters"} - {"io_uring"}
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
