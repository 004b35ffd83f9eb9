# SPDX-License-Identifier: MIT
"""What a model's unit keeps: each capability, and each lock that is open, is missed once taken.

A cold start, a checkpoint and a restore, by real podman and CRIU, with one thing less than the unit
has. So nothing stays in the unit for want of trying.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmuxd import names

from .guest import OPT, complete, counter, fails, journal, sh, two_fakes, unit

DROP_IN = Path("/run/systemd/system/llmux-model@.service.d/less.conf")
OPTIONS = Path("/etc/criu/crun.conf")

# The server as it is, with a user of its own, and one that watches a directory (inotify).
PLAIN: dict[str, Any] = {}
AS_USER: dict[str, Any] = {"podman_args": ["--user=1000"]}
_WATCH = """
import ctypes, runpy, sys
libc = ctypes.CDLL(None)
assert libc.inotify_add_watch(libc.inotify_init1(0), b"/tmp", 0x100) == 1
sys.argv[0] = "/fake_engine.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_ENTRYPOINT = json.dumps(["/usr/bin/python3", "-B", "-c", _WATCH])
# Its /tmp is of memory then; of what a container writes to its image CRIU gets no handle at all.
WATCHING: dict[str, Any] = {
    "podman_args": [f"--entrypoint={_ENTRYPOINT}"],
    "read_only": True,
}

# Of each capability: which server's, and what is said without it.
MISSED = {
    "cap_dac_override": (PLAIN, "creating overlay mount"),
    "cap_dac_read_search": (WATCHING, "Can't dump that handle"),
    "cap_kill": (AS_USER, "crun start"),
    "cap_mknod": (PLAIN, "mknodat"),
    "cap_net_admin": (PLAIN, "nft"),
    "cap_setgid": (PLAIN, "setgroups"),
    "cap_setpcap": (PLAIN, "drop bounding"),
    "cap_setuid": (AS_USER, "setresuid"),
    "cap_sys_admin": (PLAIN, "pause process"),
    "cap_sys_chroot": (PLAIN, "CRIU"),
    # This machine's host may lack it by itself.
    "cap_sys_resource": ({"podman_args": ["--ulimit=memlock=-1"]}, "RLIMIT_MEMLOCK"),
    "cap_sys_time": (PLAIN, "monotonic clock"),
}
# podman gives these to every container: what the unit lacks a container lacks.
OF_CONTAINERS = {
    "cap_chown": 0,
    "cap_fowner": 3,
    "cap_fsetid": 4,
    "cap_net_bind_service": 10,
    "cap_setfcap": 31,
}
# Engines' own instructions have one give these to a container: memory on its own NUMA node, pinned
# memory for InfiniBand, and a look into a process that hangs.
ASKED_FOR = {"cap_ipc_lock": 14, "cap_sys_nice": 23, "cap_sys_ptrace": 19}
# Needed on other hosts than this one: podman loads its AppArmor profile; CRIU holds the network by
# iptables, which may be the old one; it dumps memory that processes of another user share (and
# where it may dump these, cap_sys_resource).
ELSEWHERE = {"cap_ipc_owner", "cap_mac_admin", "cap_net_raw"}
_SECCOMP = "suspending seccomp failed"
LOCKS = {
    "SystemCallFilter=~@reboot": _SECCOMP,
    "SystemCallArchitectures=native": _SECCOMP,
    "LockPersonality=yes": _SECCOMP,
    "RestrictRealtime=yes": _SECCOMP,
    "RestrictSUIDSGID=yes": _SECCOMP,
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK": _SECCOMP,
    "MemoryDenyWriteExecute=yes": "Can't map restorer code",
    "ProtectHostname=yes": "sethostname",
    "PrivateDevices=yes": "mknodat",
    "PrivateUsers=yes": "operation not permitted",
}


@pytest.fixture
def less(request: pytest.FixtureRequest) -> Iterator[None]:
    """The models' units have this line more."""
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(f"[Service]\n{request.param}\n", encoding="ascii")
    sh("systemctl", "daemon-reload")
    yield
    DROP_IN.unlink()
    sh("systemctl", "daemon-reload")
    # What could not be cleaned up without it, the next start does first.
    if Path(f"/run/llmux/{names.slug(OPT)}.place.json").exists():
        sh("llmuxctl", "switch", OPT)


def goes_round(server: dict[str, Any]) -> str:
    """What its unit says of a start, a checkpoint and a restore; nothing if all went well."""
    two_fakes(**server)
    if complete(OPT).status == 200:
        sh("llmuxctl", "checkpoint", OPT, check=False)
        if complete(OPT).headers.get("X-LLMux-Activation") == "restore" and counter(OPT) == 2:
            return ""
    return journal(names.unit(OPT)) or "nothing"


@pytest.mark.parametrize("server", [PLAIN, WATCHING], ids=["plain", "watching"])
def test_with_all_that_it_has_a_model_goes_and_comes(server: dict[str, Any]) -> None:
    assert goes_round(server) == ""


@pytest.mark.parametrize(
    ("less", "server", "words"),
    [(f"CapabilityBoundingSet=~{cap.upper()}", *how) for cap, how in MISSED.items()],
    indirect=["less"],
    ids=list(MISSED),
)
def test_without_a_capability_it_does_not(less: None, server: dict[str, Any], words: str) -> None:
    assert words in goes_round(server)


@pytest.mark.parametrize(
    ("less", "words"), LOCKS.items(), indirect=["less"], ids=[name.split("=")[0] for name in LOCKS]
)
def test_with_a_lock_more_it_does_not(less: None, words: str) -> None:
    assert words in goes_round(PLAIN)


@pytest.mark.parametrize(
    "less",
    [f"CapabilityBoundingSet=~{' '.join(map(str.upper, OF_CONTAINERS))}"],
    indirect=True,
    ids=["of containers"],
)
def test_a_container_has_no_capability_that_its_unit_lacks(less: None) -> None:
    assert goes_round(PLAIN) == ""
    assert effective().isdisjoint(OF_CONTAINERS)


def test_a_container_may_be_given_more_and_comes_back_with_it() -> None:
    given = [f"--cap-add={name.removeprefix('cap_')}" for name in ASKED_FOR]
    assert goes_round({"podman_args": given}) == ""
    assert effective() == OF_CONTAINERS.keys() | ASKED_FOR.keys()


def effective() -> set[str]:
    """Of the capabilities that are numbered here, those of the model's server."""
    said = sh("podman", "exec", names.container(OPT), "grep", "CapEff", "/proc/1/status")
    bits = int(said.split()[1], 16)
    return {name for name, bit in (OF_CONTAINERS | ASKED_FOR).items() if bits >> bit & 1}


def test_the_old_iptables_opens_a_raw_socket() -> None:
    sh("iptables-legacy", "--list")
    _, said = fails("setpriv", "--bounding-set=-net_raw", "iptables-legacy", "--list")
    assert "Permission denied" in said or "Operation not permitted" in said


def test_the_unit_keeps_nothing_else() -> None:
    kept = set(unit(OPT, "CapabilityBoundingSet").split())
    reasons = MISSED.keys() | OF_CONTAINERS.keys() | ASKED_FOR.keys() | ELSEWHERE
    assert kept == reasons
