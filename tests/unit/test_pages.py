# SPDX-License-Identifier: MIT
"""The manual pages and the completions, held against the code."""

import argparse
import inspect
import re
import xml.etree.ElementTree as ET
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from llmuxd import __main__ as daemon_main
from llmuxd import config, errors
from llmuxd.ctl.__main__ import function
from llmuxd.ctl.arguments import parser as words

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "packaging" / "man"
COMPLETIONS = ROOT / "packaging" / "completions"


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def section(name: str, title: str) -> str:
    """What stands under a heading of a page."""
    found = re.search(rf"^# {title}\n(.*?)(?=^# |\Z)", page(name), re.MULTILINE | re.DOTALL)
    assert found, f"{name} has no section {title}"
    return found[1]


def terms(text: str) -> list[str]:
    """What has a description in a definition list."""
    return re.findall(r"^(\S.*)\n:   ", text, re.MULTILINE)


def items(text: str) -> set[str]:
    """The first words of the terms, where they are bold."""
    return {found[1] for term in terms(text) if (found := re.match(r"\*\*(\w[^*]*)\*\*", term))}


def flags(name: str) -> set[str]:
    """The options that a page describes."""
    found = " ".join(terms(section(name, "OPTIONS")))
    return set(re.findall(r"\*\*(-[^*]+)\*\*", found))


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def verbs(of: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    for action in (of or words())._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("llmuxctl has no verbs")


def every_option() -> set[str]:
    every = [words(), *verbs().values(), *verbs(verbs()["config"]).values()]
    return set().union(*(options(parser) for parser in every))


def test_llmuxctl_has_these_verbs_and_no_others() -> None:
    assert items(section("llmuxctl.1", "COMMANDS")) == verbs().keys()


def test_llmuxctl_has_these_verbs_of_config_and_no_others() -> None:
    described = re.findall(r"^\*\*config\*\* \*\*(\w+)\*\*", page("llmuxctl.1"), re.MULTILINE)
    assert described == list(verbs(verbs()["config"]))


def test_every_verb_has_its_function() -> None:
    for name, parser in (verbs() | verbs(verbs()["config"])).items():
        run = parser.get_default("run")
        assert name == "config" or inspect.iscoroutinefunction(function(run)), name


def test_llmuxctl_has_these_options_and_no_others() -> None:
    assert flags("llmuxctl.1") == every_option()


def test_llmuxd_has_these_options_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.ArgumentParser] = []

    def look(self: argparse.ArgumentParser, *args: Any) -> argparse.Namespace:
        seen.append(self)
        return argparse.Namespace()

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", look)
    daemon_main._arguments()
    assert flags("llmuxd.8") == options(seen[0])


def test_configuration_has_these_keys_and_no_others() -> None:
    keys = {each.name for each in fields(config.ModelConfig)} - {"name"}
    top = {each.name for each in fields(config.Config)} - {"path", "text"} | {"defaults"}
    assert items(page("llmux.yaml.5")) == keys | top


def test_configuration_has_these_defaults() -> None:
    text = page("llmux.yaml.5")
    for each in fields(config.ModelConfig):
        if isinstance(each.default, int | float | str) and each.default not in (True, False, ""):
            wanted = f"{each.default:g}" if isinstance(each.default, float) else str(each.default)
            # One key is at the top level too, before these.
            described = re.findall(rf"^\*\*{each.name}\*\*\n:   ((?:.+\n)+)", text, re.M)[-1]
            assert re.search(rf"Default:\s[*`]*{re.escape(wanted)}[*`]*[ .]", described), each.name


@pytest.mark.parametrize("name", ["Manager", "Model", "Job"])
def test_bus_has_these_members_and_no_others(name: str) -> None:
    root = ET.parse(ROOT / "dbus" / f"org.llmux.{name}.xml").getroot()
    shipped = [synopsis(member) for member in root.iterfind("interface/*")]
    described = terms(section("org.llmux.5", f"ORG.LLMUX.{name.upper()}"))
    assert sorted(described) == sorted(shipped)


@pytest.mark.parametrize("name", ["Manager", "Model", "Job"])
def test_bus_says_of_each_member_what_its_interface_file_says(name: str) -> None:
    text = section("org.llmux.5", f"ORG.LLMUX.{name.upper()}")
    described = dict(re.findall(r"^\*\*(\w+)\*\*.*\n:   ((?:.+\n)+)", text, re.MULTILINE))
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    (interface,) = ET.parse(ROOT / "dbus" / f"org.llmux.{name}.xml", parser).iterfind("interface")
    comment = ""
    for child in interface:
        if isinstance(child.tag, str):
            assert described[child.attrib["name"]].split() == comment.split()
        else:
            comment = str(child.text)


def synopsis(member: ET.Element) -> str:
    """A member of an interface as the page has it."""
    name = f"**{member.attrib['name']}**"
    if member.tag == "property":
        return f"{name} {member.attrib['type']}"
    into, out = (
        ", ".join(
            f"{arg.attrib['type']} {arg.attrib['name']}"
            for arg in member.iter("arg")
            if (arg.get("direction") == "out") is returned
        )
        for returned in (False, True)
    )
    return f"{name} ({into})" + (f" -> {out}" if out else "")


def test_bus_has_these_errors() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.LlmuxError):
            over_http = kind.dbus_name == errors.LlmuxError.dbus_name or kind is errors.BadRequest
            assert over_http or kind.dbus_name in terms(page("org.llmux.5"))


def test_each_page_refers_to_pages_that_exist() -> None:
    ours = {path.stem for path in PAGES.glob("*.md")}
    assert ours == {path.name for path in PAGES.iterdir()} - {f"{name}.md" for name in ours}
    for name in ours:
        for other, number in re.findall(r"\*\*([^*]+)\*\*\((\d)\)", page(name)):
            assert "llmux" not in other or f"{other}.{number}" in ours, (name, other)


def test_no_line_of_a_page_begins_a_list_by_mistake() -> None:
    """`429.` at the begin of a line would be number 1 of a list."""
    for path in PAGES.glob("*.md"):
        assert not re.search(r"^ *(\d+\.|[*+-]) ", path.read_text(), re.MULTILINE), path


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
