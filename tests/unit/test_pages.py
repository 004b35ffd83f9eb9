# SPDX-License-Identifier: MIT
"""The manual pages and the completions, held against the code."""

import argparse
import re
import xml.etree.ElementTree as ET
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from llmuxd import __main__ as daemon_main
from llmuxd import config, errors
from llmuxd.ctl.__main__ import _parser

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "packaging" / "man"
COMPLETIONS = ROOT / "packaging" / "completions"


def page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def items(name: str, macro: str) -> set[str]:
    """The first words of the page's list items that are marked up so."""
    return set(re.findall(rf"^\.It {macro} (\S+)", page(name), re.MULTILINE))


def flags(text: str) -> set[str]:
    """The options that list items of a page describe."""
    lines = [line for line in text.splitlines() if line.startswith(".It Fl ")]
    return {f"-{flag}" for line in lines for flag in re.findall(r"Fl (-?[\w-]+)", line)}


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def verbs() -> dict[str, argparse.ArgumentParser]:
    for action in _parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("llmuxctl has no verbs")


def every_option() -> set[str]:
    return options(_parser()).union(*(options(parser) for parser in verbs().values()))


def test_llmuxctl_has_these_verbs_and_no_others() -> None:
    assert items("llmuxctl.1", "Cm") == verbs().keys()


def test_llmuxctl_has_these_options_and_no_others() -> None:
    assert flags(page("llmuxctl.1")) == every_option()


def test_llmuxd_has_these_options_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.ArgumentParser] = []

    def look(self: argparse.ArgumentParser, *args: Any) -> argparse.Namespace:
        seen.append(self)
        return argparse.Namespace()

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", look)
    daemon_main._arguments()
    assert flags(page("llmuxd.8")) == options(seen[0])


def test_configuration_has_these_keys_and_no_others() -> None:
    keys = {each.name for each in fields(config.ModelConfig)} - {"name"}
    top = {each.name for each in fields(config.Config)} - {"path"} | {"defaults"}
    assert items("llmux.yaml.5", "Ic") == keys | top


def test_configuration_has_these_defaults() -> None:
    text = page("llmux.yaml.5")
    for each in fields(config.ModelConfig):
        if isinstance(each.default, int | float | str) and not isinstance(each.default, bool):
            wanted = f"{each.default:g}" if isinstance(each.default, float) else str(each.default)
            # One key is at the top level too, before these.
            described = re.findall(rf"^\.It Ic {each.name}\n((?:(?!\.It).*\n)*)", text, re.M)[-1]
            assert re.search(rf"Default:\s(\.Pa )?{re.escape(wanted)}[ .]", described), each.name


def test_bus_has_these_members_and_no_others() -> None:
    shipped: set[str] = set()
    for name in ("Manager", "Model", "Job"):
        root = ET.parse(ROOT / "dbus" / f"org.llmux.{name}.xml").getroot()
        shipped |= {member.attrib["name"] for member in root.iterfind("interface/*")}
    assert items("org.llmux.5", "Ic") == shipped


def test_bus_has_these_errors() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.LlmuxError):
            over_http = kind.__name__ in ("BadRequest", "BodyTooLarge", "BackendLost")
            assert over_http or f".It {kind.dbus_name}\n" in page("org.llmux.5")


def test_each_page_refers_to_pages_that_exist() -> None:
    ours = {path.name for path in PAGES.iterdir()}
    for path in PAGES.iterdir():
        for name, section in re.findall(r"^\.Xr (\S+) (\d)", path.read_text(), re.MULTILINE):
            assert "llmux" not in name or f"{name}.{section}" in ours, (path.name, name)


def test_units_point_to_pages_that_exist() -> None:
    for unit in (ROOT / "systemd").iterdir():
        (found,) = re.findall(r"^Documentation=man:(\S+)\((\d)\)", unit.read_text(), re.MULTILINE)
        assert (PAGES / ".".join(found)).exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_know_every_verb_and_option(shell: str) -> None:
    text = (COMPLETIONS / f"llmuxctl.{shell}").read_text(encoding="utf-8")
    words = set(re.findall(r"[\w-]+", text))
    assert verbs().keys() <= words
    for option in every_option():
        if option.startswith("--"):
            assert option in words or f"-l {option[2:]} " in text, option
