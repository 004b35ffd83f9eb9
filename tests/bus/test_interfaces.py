# SPDX-License-Identifier: MIT
"""The shipped XML against what the daemon says of itself."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from .private_bus import ROOT
from .test_control import QWEN, House, house

__all__ = ["house"]

INTERFACES = {
    "org.llmux.Manager": "/Manager",
    "org.llmux.Model": "/Model/b",
    "org.llmux.Job": "/Job/1",
}


def members(interface: ET.Element) -> dict[tuple[str, str], list[object]]:
    """Each member by its kind and name: its arguments, or type and access; its annotations."""
    return {
        (member.tag, member.attrib["name"]): [
            member.get("type"),
            member.get("access"),
            arguments(member, "in"),
            # dbus-next has no names for what a method returns, and none for a signal's.
            [signature for _, signature in arguments(member, "out")],
            sorted((note.attrib["name"], note.attrib["value"])
                   for note in member.iter("annotation")),
        ]
        for member in interface
        if isinstance(member.tag, str)
    }  # fmt: skip


def arguments(member: ET.Element, direction: str) -> list[tuple[str | None, str]]:
    default = "out" if member.tag == "signal" else "in"
    return [
        (arg.get("name"), arg.attrib["type"])
        for arg in member.iter("arg")
        if arg.get("direction", default) == direction
    ]


def shipped(name: str) -> ET.Element:
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    root = ET.parse(ROOT / "dbus" / f"{name}.xml", parser).getroot()
    (interface,) = root.findall("interface")
    assert interface.attrib["name"] == name
    return interface


@pytest.mark.parametrize(("name", "path"), INTERFACES.items())
async def test_shipped_is_what_is_served(house: House, name: str, path: str) -> None:  # noqa: F811
    gate = house.stage.units.hold("start", QWEN)
    house.stage.switcher.switch(QWEN)
    xml = await house.caller.call(
        path, "Introspect", interface="org.freedesktop.DBus.Introspectable"
    )
    found = ET.fromstring(str(xml)).find(f"interface[@name='{name}']")
    assert found is not None
    assert members(shipped(name)) == members(found)
    gate.open()


@pytest.mark.parametrize("name", INTERFACES)
def test_every_member_is_documented_right_before_it(name: str) -> None:
    before = None
    for child in shipped(name):
        if isinstance(child.tag, str):
            assert before is not None, child.attrib
            assert before.endswith(". "), before
            before = None
        else:
            before = str(child.text)


def test_every_interface_is_shipped() -> None:
    assert {path.stem for path in Path(ROOT / "dbus").glob("*.xml")} == INTERFACES.keys()
