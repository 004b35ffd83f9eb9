# SPDX-License-Identifier: MIT
"""Typed getters over YAML nodes; every complaint carries the node's place.

The file is composed to nodes, never constructed to objects: nodes keep their line and column
for the error text, and the text that was written. PyYAML's constructor would take duplicate
keys silently, `4000:01` for 240001 and `on` for true.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from .errors import ConfigInvalid

# What is longer is nobody's slip of the pen, and no line of a log. In characters.
MAX_SHOWN = 256
# In one value that is free in form. Not more than the interpreter's stack takes, if nested.
MAX_VALUES = 300
NULL = "tag:yaml.org,2002:null"
_UNITS = {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate(("K", "M", "G", "T"), start=1)
    for suffix, base in (("IB", 1024), ("B", 1000))
}
# No more digits than a number of bytes can need: float() reads others as infinite.
# As JSON writes it, and no longer than int() takes.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,300})(?:\.[0-9]{1,300})?(?:[eE][-+]?[0-9]{1,2})?")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kKMGT]i?B)")


def nearest(word: str, known: list[str]) -> str:
    """`did you mean …?` for the closest of `known`; empty where none is close."""
    if len(word) > MAX_SHOWN:
        # The search is quadratic, and whoever sends a request chooses the word.
        return ""
    # A model's unit waits for each import, and seldom for this one.
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _plain_value(node: yaml.ScalarNode) -> object:
    """null, true, false and numbers where they stand without quotes; else the text."""
    text = str(node.value)
    # The parser in C says '' of a plain one, the one in Python None.
    if node.style:
        return text
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    return json.loads(text) if _NUMBER.fullmatch(text) else text


class Nodes:
    """The getters for one file; `what` is what a complaint calls the node."""

    def __init__(self, path: Path):
        self._path = path

    def mapping(self, node: yaml.Node, what: str, known: list[str]) -> dict[str, yaml.Node]:
        """The nodes by key; a key that is not `known` is refused, with the nearest one."""
        result = {}
        for key, value in self.pairs(node, what):
            if key.value not in known:
                hint = nearest(key.value, known) or f"known here: {', '.join(sorted(known))}"
                raise self.error(key, f"unknown key {key.value!r} in {what}", hint)
            result[key.value] = value
        return result

    def pairs(self, node: yaml.Node, what: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
        """Keys and values, none twice."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what} must be a mapping of 'key: value' lines")
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(key, f"a key of {what} must be plain text")
            if key.value in seen:
                raise self.error(
                    key, f"{key.value!r} stands twice in {what}, first in line {seen[key.value]}"
                )
            seen[key.value] = key.start_mark.line + 1
        return list(node.value)

    def text(self, node: yaml.Node, what: str) -> str:
        """A text, as it was written: `--max-model-len, 512` means "512", not a number."""
        if not isinstance(node, yaml.ScalarNode) or node.tag == NULL:
            raise self.error(node, f"{what} must be a text")
        if "\0" in node.value:
            raise self.error(node, f"{what} has a NUL character in it")
        return str(node.value)

    def texts(self, node: yaml.Node, what: str) -> tuple[str, ...]:
        """A list of texts."""
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, f"{what} must be a list", f"write {what}: [one, two]")
        return tuple(self.text(item, f"an item of {what}") for item in node.value)

    def integer(self, node: yaml.Node, what: str, low: int, high: int | None = None) -> int:
        """A whole number from `low` to `high`."""
        text = self.text(node, what)
        # The length: int() itself refuses more than 4300 digits, with another error.
        digits = text.removeprefix("-") if low < 0 else text
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            raise self.error(node, f"{what} must be a whole number, not {text!r}")
        number = int(text)
        if number < low or (high is not None and number > high):
            bound = f"from {low} to {high}" if high is not None else f"{low} or more"
            raise self.error(node, f"{what} must be {bound}, not {text}")
        return number

    def seconds(self, node: yaml.Node, what: str, *, or_none: bool = False) -> float:
        """A length of time, longer than 0 unless that is allowed too."""
        text = self.text(node, what)
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not (0 < seconds < 1e9 or (or_none and seconds == 0)):
            raise self.error(node, f"{what} must be a number of seconds, not {text!r}")
        return seconds

    def size(self, node: yaml.Node, what: str) -> int:
        """Bytes, written with their unit: 20GiB, 1.5 GB."""
        text = self.text(node, what)
        match = _SIZE.fullmatch(text)
        if match is None or (size := int(float(match[1]) * _UNITS[match[2].upper()])) <= 0:
            raise self.error(node, f"{what} must be a size such as 20GiB or 800MiB, not {text!r}")
        return size

    def boolean(self, node: yaml.Node, what: str) -> bool:
        """true or false, and none of the other words of YAML 1.1."""
        text = self.text(node, what)
        if text not in ("true", "false"):
            raise self.error(node, f"{what} must be true or false, not {text!r}")
        return text == "true"

    def json(self, node: yaml.Node, what: str) -> object:
        """Any value that JSON has: plain words are read as YAML 1.2 does, `on` is a text."""
        return self._json(node, what, [MAX_VALUES])

    def _json(self, node: yaml.Node, what: str, left: list[int]) -> object:
        # Anchors make a graph of the file, which may lead back into itself.
        left[0] -= 1
        if left[0] < 0:
            raise self.error(node, f"{what} has more than {MAX_VALUES} values")
        match node:
            case yaml.MappingNode():
                pairs = self.pairs(node, what)
                return {key.value: self._json(value, what, left) for key, value in pairs}
            case yaml.SequenceNode():
                return [self._json(item, what, left) for item in node.value]
            case yaml.ScalarNode():
                return _plain_value(node)
            case _:
                raise self.error(node, f"{what} has a value that JSON does not have")

    def choice(self, node: yaml.Node, what: str, choices: Sequence[str]) -> str:
        """One of these words."""
        text = self.text(node, what)
        known = [str(choice) for choice in choices]
        if text not in known:
            raise self.error(
                node, f"unknown {what} {text!r}", nearest(text, known) or f"one of {known}"
            )
        return text

    def error(self, node: yaml.Node, message: str, hint: str = "") -> ConfigInvalid:
        """A complaint about this node, with its place."""
        mark = node.start_mark
        return ConfigInvalid(f"{self._path}:{mark.line + 1}:{mark.column + 1}: {message}", hint)
