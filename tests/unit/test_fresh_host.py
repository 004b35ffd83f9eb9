# SPDX-License-Identifier: MIT
"""What the README says that a host must have, held against the lines of llmuxctl check."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from llmuxd.ctl import check
from llmuxd.ctl.checks import basics, criu, criu_conf, gpu
from llmuxd.ctl.checks.host import Done, dotted
from llmuxd.ctl.checks.result import Status

from .recorded import CONFIG, CRUN, RecordedHost, a_gpu_host, a_host, label, podman_info

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text(encoding="utf-8")
NEEDS = README.partition("### What it needs\n")[2].partition("### A fresh host\n")[0]
FRESH = README.partition("### A fresh host\n")[2].partition("### CRIU's options\n")[0]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of all tables of the text: the other cells by the first one."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    heads = ("what", "distribution")
    return {row[0].strip(): row[1:] for row in cells if row[0].strip() not in heads}


def lines_of(here: RecordedHost) -> set[str]:
    return {result.name for result in check.run(CONFIG, here)}


def test_each_thing_that_is_needed_has_a_line() -> None:
    named = {name for row in rows(NEEDS).values() for name in re.findall(r"`([^`]+)`", row[-1])}
    assert len(rows(NEEDS)) == 17
    assert all(re.search(r"`.+`", row[-1]) for row in rows(NEEDS).values())
    assert named <= lines_of(a_gpu_host())


def test_each_line_is_told_of() -> None:
    assert lines_of(a_gpu_host()) <= set(re.findall(r"`([^`]+)`", NEEDS))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("systemd", f"{basics.SYSTEMD_MINIMUM} or newer"),
        ("podman", f"{dotted(basics.PODMAN_MINIMUM)} or newer"),
        *(
            ("CRIU", f"{dotted(fixed)} or newer on {before}{dotted(kernel)}")
            for before, (kernel, fixed, _) in zip(("", "kernels "), criu.BREAKS, strict=True)
        ),
        ("NVIDIA driver", f"{dotted(gpu.DRIVER_MINIMUM)} or newer"),
        ("NVIDIA driver", "575.57.08 or newer"),
    ],
)
def test_the_versions_are_those_that_are_checked(row: str, words: str) -> None:
    assert words in rows(NEEDS)[row][0]


def test_the_packages_are_those_that_are_declared() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told = rows(NEEDS)["Python packages"][0]
    assert told == ", ".join([*project["dependencies"], "or newer"]).replace(">=", " ")
    assert rows(NEEDS)["Python"][0] == project["requires-python"].replace(">=", "") + " or newer"


def test_the_options_of_criu_are_those_that_are_asked_for() -> None:
    told = re.findall(r"^```\n(tcp-established\n.*?)```$", README, re.MULTILINE | re.DOTALL)
    assert [dict(criu_conf.statements(block)) for block in told] == [criu.NEEDED]


class Claim(NamedTuple):
    """Words of a distribution's row, and what llmuxctl check says on such a host."""

    words: str
    line: str
    status: Status
    text: str


def with_criu(
    version: str, kernel: str, crun: str = "1.28", start: Callable[[], RecordedHost] = a_host
) -> RecordedHost:
    here = start()
    here.criu(version)
    here.release = kernel
    told = CRUN.replace("1.28", crun)
    runtime = {"name": "crun", "path": "/usr/bin/crun", "version": told}
    here.podman(podman_info(ociRuntime=runtime))
    return here


def debian_12() -> RecordedHost:
    here = with_criu("3.17.1", "6.13.1", start=a_gpu_host)
    here.podman(podman_info() | {"version": {"Version": "4.3.1"}})
    here.packages["pystemd"] = "0.11.0"
    return here


def debian_12_as_it_comes() -> RecordedHost:
    return with_criu("3.17.1", "6.1.0", start=a_gpu_host)


def ubuntu() -> RecordedHost:
    here = with_criu("", "6.8.0")
    here.remove("/usr/sbin/criu")
    told = CRUN.replace(" +CRIU", "")
    runtime = {"name": "crun", "path": "/usr/bin/crun", "version": told}
    here.podman(podman_info(ociRuntime=runtime))
    return here


def ubuntu_with_runc() -> RecordedHost:
    here = with_criu("4.2", "6.8.0")
    here.podman(podman_info(ociRuntime={"name": "runc", "version": "runc version 1.1.12\n"}))
    return here


def fedora() -> RecordedHost:
    here = a_gpu_host()
    here.files["/sys/fs/selinux/booleans/container_use_xserver_devices"] = "0 0"
    here.unit("firewalld.service", ActiveState="active")
    return here


def fedora_with_volumes() -> RecordedHost:
    here = a_gpu_host()
    here.files[str(CONFIG)] = "models: {a: {image: i, volumes: ['/srv/a:/a']}}"
    here.commands[label("/srv/a")] = Done(0, "system_u:object_r:var_t:s0\n")
    return here


def rhel_9() -> RecordedHost:
    return with_criu("3.19", "5.14.0-570.el9", start=a_gpu_host)


OK, WARN, FAIL = Status.OK, Status.WARN, Status.FAIL
DISTRIBUTIONS: dict[str, list[tuple[Callable[[], RecordedHost], list[Claim]]]] = {
    "Debian forky (testing)": [(a_host, [])],
    "Debian 13": [
        (
            lambda: with_criu("4.1.1", "6.12.0", "1.21"),
            [
                Claim("CRIU 4.1.1 dumps on its own kernel (6.12)", "criu", OK, "4.1.1 on"),
                Claim("crun 1.21 reads `/etc/criu/default.conf`", "runtime", OK, "default.conf"),
            ],
        ),
        (
            lambda: with_criu("4.1.1", "6.16.0"),
            [Claim("`Can't get 1:16 opt`", "criu", FAIL, "Can't get 1:16 opt")],
        ),
    ],
    "Debian 12": [
        (
            debian_12,
            [
                Claim("podman 4.3 cannot name a network's bridge", "podman", FAIL, "bridge"),
                Claim("kernels 6.13 and newer", "criu", FAIL, "on kernel 6.13"),
                Claim("pystemd 0.11 is too old", "python", FAIL, "pystemd 0.11.0 is too old"),
            ],
        ),
        (
            debian_12_as_it_comes,
            [Claim("nor from GPUs", "criu", FAIL, "cannot dump what is on a GPU")],
        ),
    ],
    "Ubuntu 24.04": [
        (
            ubuntu,
            [
                Claim("CRIU is not in its archive", "criu", FAIL, "not installed"),
                Claim("crun is built without CRIU", "runtime", FAIL, "built without CRIU"),
            ],
        ),
        (
            ubuntu_with_runc,
            [Claim("`/etc/criu/runc.conf`", "runtime", OK, "which reads /etc/criu/runc.conf")],
        ),
    ],
    "Fedora": [
        (
            fedora,
            [
                Claim("container_use_xserver_devices", "selinux", WARN, "from the GPUs"),
                Claim("netavark-firewalld-reload", "firewall", WARN, "a reload of firewalld"),
            ],
        ),
        (fedora_with_volumes, [Claim("`:z` behind volumes", "selinux", WARN, "/srv/a is var_t")]),
    ],
    "RHEL 10 and its kin": [
        (
            lambda: with_criu("4.1", "6.12.0-55.el10"),
            [
                Claim(
                    "`/etc/criu/default.conf`", "runtime", OK, "which reads /etc/criu/default.conf"
                )
            ],
        )
    ],
    "RHEL 9 and its kin": [
        (
            rhel_9,
            [
                Claim("does not dump from GPUs", "criu", FAIL, "cannot dump what is on a GPU"),
            ],
        )
    ],
}


def test_each_distribution_is_held_against_it() -> None:
    assert rows(FRESH).keys() == DISTRIBUTIONS.keys()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_what_the_readme_says_of_a_distribution_is_said_there(distribution: str) -> None:
    row = " | ".join(rows(FRESH)[distribution])
    for host, claims in DISTRIBUTIONS[distribution]:
        told = check.run(CONFIG, host())
        assert claims or not any(result.failed for result in told)
        for claim in claims:
            assert claim.words in row
            (result,) = [
                each for each in told if each.name == claim.line and claim.text in each.text
            ]
            assert result.status is claim.status, result
