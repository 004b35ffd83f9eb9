# SPDX-License-Identifier: MIT
"""The commands that the README and the manual pages tell people to type, read from their text."""

import re
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[1]

# A block with one of these at the begin of a line is a block of commands.
_PROGRAMS = (
    *("llmuxctl", "llmuxd", "llmux-cuda-checkpoint", "busctl", "gdbus", "dbus-send"),
    *("systemctl", "journalctl", "podman", "curl", "make", "python3", "apt-get", "dnf"),
    *("mkdir", "ln", "KEY=", "UNIT=", "$EDITOR"),
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^    .*\n|^\n(?=    ))+", re.MULTILINE)
_CELL = re.compile(r"^\| (`llmuxctl [^|]*`) \|", re.MULTILINE)

# What is not run in the test machine, by how it begins, and why.
ELSEWHERE = {
    "make ": "builds, installs or tests this checkout, on a host with a network",
    "apt-get ": "wants a network",
    "dnf ": "wants Fedora",
    "echo 'deb ": "wants Debian 13",
    "printf 'Package: ": "wants Debian 13",
    "add-apt-repository ": "wants Ubuntu",
    "printf '[engine]": "wants runc",
    "podman pull ": "wants a network",
    "$EDITOR ": "is a dialogue",
    "systemctl edit ": "is a dialogue",
    "systemctl disable --now llmuxd.socket ": "is the end, and more is to come",
    "python3 -m tests.machine ": "is about the machine, from its host",
    "python3 -m tests.gpu ": "is for a host with a GPU",
    "ln -s /usr/libexec/llmux/bin/cuda-checkpoint": "is for a host with a GPU",
}


@dataclass(frozen=True)
class Command:
    """One command. `before`: variables that its block has set by then."""

    where: str
    text: str
    before: tuple[str, ...] = ()

    @property
    def elsewhere(self) -> str:
        """Why it is not run in the machine; empty where it is."""
        found = [why for begin, why in ELSEWHERE.items() if self.text.startswith(begin)]
        return found[0] if found else ""


def readme() -> list[Command]:
    """Of README.md: its blocks, and the table of llmuxctl's commands."""
    text = (TOP / "README.md").read_text(encoding="utf-8")
    found: list[Command] = []
    for language, block in _BLOCK.findall(text):
        found += _commands("README.md", block) if language in ("", "sh") else []
    for cell in _CELL.findall(text):
        for word in re.findall(r"`([^`]*)`", cell):
            found.append(Command("README.md", _filled_in(word)))
    return found


def pages() -> list[Command]:
    """Of the manual pages: what stands in an indented block."""
    found: list[Command] = []
    for path in sorted((TOP / "packaging" / "man").glob("*.md")):
        text = re.sub(r"\n:   .*(?:\n    .*)*", "", path.read_text(encoding="utf-8"))
        for block in _INDENTED.findall(text):
            lines = re.sub(r"^    ", "", block, flags=re.MULTILINE)
            found += _commands(path.stem, lines)
    return found


def _commands(where: str, block: str) -> list[Command]:
    """Those of a block; after a line with a prompt the rest of it is what was answered."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    if lines and lines[0].startswith(tuple(f"# {program}" for program in _PROGRAMS)):
        return [Command(where, lines[0].removeprefix("# "))]
    if not any(line.startswith(_PROGRAMS) for line in lines):
        return []
    found, variables = [], []
    for line in lines:
        text = re.sub(r"\s+# .*$", "", line)
        if not text or text.startswith("#"):
            continue
        if re.match(r"[A-Z]+=", text) and ";" not in text:
            variables.append(text)
        else:
            found.append(Command(where, text, tuple(variables)))
    return found


def _filled_in(word: str) -> str:
    """A line of the table with something in place of what it leaves open."""
    while (shorter := re.sub(r" ?\[[^][]*\]", "", word)) != word:
        word = shorter
    return word.replace("MODEL", "qwen").replace("JOB…", "3")
