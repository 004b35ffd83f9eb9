# SPDX-License-Identifier: MIT
"""What the two packages and the README ask for, held against what the code imports and runs."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from llmuxd.ctl.checks import basics
from llmuxd.ctl.checks.host import dotted
from llmuxd.model import init

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# What is imported under another name than PyPI's; and what is part of another's interface.
MODULES = {"yaml": "pyyaml", "dbus_next": "dbus-next", "prometheus_client": "prometheus-client"}
WITH_AIOHTTP = {"multidict", "yarl"}
# Each program that is run: the RPM and the Debian package that has it.
NEEDED = {
    "podman": ("podman", "podman"),
    "criu": ("criu", "criu"),
    "nft": ("nftables", "nftables"),
    "iptables-restore": ("iptables-nft", "iptables"),
    "systemctl": ("systemd", "systemd"),
    "busctl": ("systemd", "systemd"),
    "journalctl": ("systemd", "systemd"),
}
# A part of llmuxctl does without.
WANTED = {
    "ssh": ("openssh-clients", "openssh-client"),
    "sysctl": ("procps-ng", "procps"),
    "ss": ("iproute", "iproute2"),
}
# The C library's, coreutils', and the driver's.
ANYWAY = {"ldconfig", "nvidia-smi", "stat"}
# What podman and the bus call: by the RPM's words, Debian's.
BESIDE = {
    "netavark": "netavark",
    "(crun or runc)": "crun | runc",
    "(criu-libs if crun)": "libcriu2 | runc",
}
# Fedora's systemd requires a bus, Debian's does not.
DEBIAN_ONLY = {"default-dbus-system-bus | dbus-system-bus", "python3"}

RUNS = {"run", "Run", "which", "create_subprocess_exec", "execvp"}
NAMES_OF_LISTS = {"argv", "command", "show", "programs", "_QUERY"}


def trees() -> Iterator[ast.AST]:
    """The daemon, llmuxctl and the helpers; what is mounted into containers has their modules."""
    for path in sorted((ROOT / "llmuxd").rglob("*.py")):
        if "inside" not in path.parts:
            yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def imported() -> set[str]:
    found = set()
    for node in trees():
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names - {"llmuxd"}


def commands(node: ast.AST) -> list[ast.expr]:
    """The arguments of what runs commands, and what a name is given that stands for one."""
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in RUNS:
            return list(node.args[:1])
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in NAMES_OF_LISTS:
            return [value]
        case ast.FunctionDef(name="ssh"):
            return [each.value for each in ast.walk(node)
                    if isinstance(each, ast.Return) and each.value]  # fmt: skip
        case _:
            return []


def first_word(command: ast.expr) -> str | None:
    match command:
        case ast.List(elts=[ast.Constant(value=str(word)), *_]):
            return word
        case ast.Tuple(elts=[ast.Constant(value=str(word)), *_]):
            return word
        case ast.Constant(value=str(word)):
            return word
        case _:
            return None


def programs() -> set[str]:
    words = {first_word(command) for node in trees() for command in commands(node)}
    # llmuxd's own stands in for NVIDIA's.
    return {word for word in words if word} - {"cuda-checkpoint"}


def spec(field: str) -> set[str]:
    """The main package's, without what macros give."""
    text = (ROOT / "packaging/rpm/llmuxd.spec").read_text().partition("%description")[0]
    return {
        " ".join(found.split())
        for found in re.findall(rf"^{field}:(.*)$", text, re.MULTILINE)
        if "%" not in found
    }


def deb(field: str) -> set[str]:
    """With a version as RPM writes it."""
    text = (ROOT / "packaging/deb/control").read_text()
    found = re.search(rf"^{field}: (.*)$", text, re.MULTILINE)
    assert found is not None
    return {re.sub(r" \((>= [^)]+)\)", r" \1", each) for each in found[1].split(", ")}


def bare(wishes: set[str]) -> set[str]:
    """Without versions."""
    return {re.sub(r" >= \S+", "", wish) for wish in wishes}


def in_debian(name: str) -> str:
    return {"pyyaml": "python3-yaml"}.get(name, f"python3-{name}")


def row(what: str) -> str:
    found = re.search(rf"^\| {re.escape(what)} \| ([^|]*) \|", README, re.MULTILINE)
    assert found is not None, what
    return found[1]


def listed(manager: str, after: str) -> set[str]:
    """What the README has one install."""
    text = README[README.index(after) :]
    found = re.search(rf"^{manager} install ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert found is not None
    return set(found[1].replace("\\\n", " ").replace("'", "").split())


def test_what_is_imported_is_a_dependency_and_each_is_imported() -> None:
    found = {MODULES.get(name, name) for name in imported() - WITH_AIOHTTP}
    assert found == {wish.partition(">=")[0] for wish in PROJECT["dependencies"]}


def test_the_debian_package_asks_for_the_same_python_packages() -> None:
    wanted = {f"python3 {PROJECT['requires-python'].replace('>=', '>= ')}"}
    for name, _, least in (wish.partition(">=") for wish in PROJECT["dependencies"]):
        wanted.add(f"{in_debian(name)} >= {least}")
    assert {wish for wish in deb("Depends") if wish.startswith("python3")} == wanted


def test_the_rpm_leaves_them_to_what_is_generated_from_the_project() -> None:
    assert not [wish for wish in spec("Requires") if "python" in wish]
    assert f"python3-devel {PROJECT['requires-python'].replace('>=', '>= ')}" in spec(
        "BuildRequires"
    )


def test_each_program_that_is_run_is_known_here() -> None:
    assert programs() == NEEDED.keys() | WANTED.keys() | ANYWAY


def test_the_packages_ask_for_each_program() -> None:
    for rpm_name, deb_name in NEEDED.values():
        assert rpm_name in bare(spec("Requires")) and deb_name in bare(deb("Depends"))
    for rpm_name, deb_name in WANTED.values():
        assert rpm_name in spec("Recommends") and deb_name in deb("Recommends")


def test_the_packages_want_podmans_init() -> None:
    assert init.NAME in spec("Recommends") & deb("Recommends")


def test_both_packages_ask_for_the_same() -> None:
    names = dict(NEEDED.values()) | BESIDE
    translated = set()
    for wish in spec("Requires"):
        name, _, least = wish.partition(" >= ")
        translated.add(f"{names[name]} >= {least}" if least else names[name])
    python = {wish for wish in deb("Depends") if wish.startswith("python3-")}
    here = {wish for wish in deb("Depends") - python if bare({wish}) - DEBIAN_ONLY}
    assert translated == here


def test_the_readme_the_checks_and_the_packages_name_the_same_versions() -> None:
    podman, systemd = dotted(basics.PODMAN_MINIMUM), str(basics.SYSTEMD_MINIMUM)
    assert row("podman").startswith(f"{podman} or newer")
    assert row("systemd") == f"{systemd} or newer"
    assert {f"podman >= {podman}", f"systemd >= {systemd}"} <= spec("Requires")
    (criu,) = (wish.partition(" >= ")[2] for wish in spec("Requires") if wish[:5] == "criu ")
    assert row("CRIU").endswith(f"{criu} or newer before")
    assert row("Python") == f"{PROJECT['requires-python'].removeprefix('>=')} or newer"
    told = row("Python packages").removesuffix(", or newer").split(", ")
    assert [each.replace(" ", ">=") for each in told] == PROJECT["dependencies"]


def test_the_readme_has_one_install_all_that_the_packages_ask_for() -> None:
    there = {"systemd", "python3", "default-dbus-system-bus | dbus-system-bus"}
    wanted = {wish.partition(" | ")[0] for wish in bare(deb("Depends")) - there}
    assert wanted <= listed("apt-get", "# Debian 13")
    wanted = bare(spec("Requires")) - there - BESIDE.keys() | {"netavark", "crun", "criu-libs"}
    assert wanted <= listed("dnf", "# Fedora") & listed("dnf", "# RHEL 9")
    python = {f"python3dist({wish.partition('>=')[0]})" for wish in PROJECT["dependencies"]}
    assert python <= listed("dnf", "# Fedora")
