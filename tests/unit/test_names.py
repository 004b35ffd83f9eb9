# SPDX-License-Identifier: MIT
import itertools
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmuxd import names
from llmuxd.errors import InvalidName

QWEN = "Qwen/Qwen2.5-3B-Instruct"

# What `systemd-escape NAME` prints, and the label that sd_bus_path_encode(3) makes.
KNOWN = {
    QWEN: ("Qwen-Qwen2.5\\x2d3B\\x2dInstruct", "Qwen_2fQwen2_2e5_2d3B_2dInstruct"),
    "facebook/opt-125m": ("facebook-opt\\x2d125m", "facebook_2fopt_2d125m"),
    "a b": ("a\\x20b", "a_20b"),
    ".hidden": ("\\x2ehidden", "_2ehidden"),
    "..": ("\\x2e.", "_2e_2e"),
    "a.b": ("a.b", "a_2eb"),
    "/": ("-", "_2f"),
    "//": ("--", "_2f_2f"),
    "-a": ("\\x2da", "_2da"),
    "$HOME": ("\\x24HOME", "_24HOME"),
    "%i": ("\\x25i", "_25i"),
    "a\\b": ("a\\x5cb", "a_5cb"),
    "a\\x2fb": ("a\\x5cx2fb", "a_5cx2fb"),
    "a_b": ("a_b", "a_5fb"),
    "a:b@c": ("a:b\\x40c", "a_3ab_40c"),
    "7b": ("7b", "_37b"),
    "modèle/été": ("mod\\xc3\\xa8le-\\xc3\\xa9t\\xc3\\xa9", "mod_c3_a8le_2f_c3_a9t_c3_a9"),
    "模型": ("\\xe6\\xa8\\xa1\\xe5\\x9e\\x8b", "_e6_a8_a1_e5_9e_8b"),
}

valid_names = st.text(
    st.characters(codec="utf-8", exclude_characters="\x7f", min_codepoint=32),
    min_size=1,
    max_size=50,
)


@pytest.mark.parametrize("name", KNOWN)
def test_escapes_as_systemd_does(name: str) -> None:
    assert names.escape(name) == KNOWN[name][0]


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="no systemd-escape here")
def test_known_outputs_are_those_of_systemd_escape() -> None:
    printed = subprocess.run(
        ["systemd-escape", "--", *KNOWN], stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    assert printed.rstrip("\n").split(" ") == [instance for instance, _ in KNOWN.values()]


@pytest.mark.parametrize("name", KNOWN)
def test_encodes_object_paths_as_sd_bus_does(name: str) -> None:
    assert names.object_path(name) == "/Model/" + KNOWN[name][1]


def test_empty_label_is_sd_bus_own_word_for_it() -> None:
    assert names.object_path("") == "/Model/_"
    assert names.from_object_path("/Model/_") == ""


@pytest.mark.parametrize("name", KNOWN)
def test_whole_chain_leads_back_to_the_name(name: str) -> None:
    assert names.check(name) == name
    assert names.unescape(names.escape(name)) == name
    assert names.from_unit(names.unit(name)) == name
    assert names.from_object_path(names.object_path(name)) == name
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", names.container(name))


def test_names_that_users_script_against() -> None:
    assert names.unit(QWEN) == "llmux-model@Qwen-Qwen2.5\\x2d3B\\x2dInstruct.service"
    assert names.object_path(QWEN) == "/Model/Qwen_2fQwen2_2e5_2d3B_2dInstruct"
    assert names.container(QWEN).startswith("llmux-qwen-qwen2.5-3b-instruct-")


@given(st.text(st.characters(codec="utf-8")))
def test_instance_round_trip(name: str) -> None:
    instance = names.escape(name)
    assert re.fullmatch(r"([a-zA-Z0-9:_.\-]|\\x[0-9a-f]{2})*", instance)
    assert not instance.startswith(".")
    assert names.unescape(instance) == name


@given(st.text(st.characters(codec="utf-8")))
def test_object_path_round_trip(name: str) -> None:
    path = names.object_path(name)
    assert re.fullmatch(r"/Model/[A-Za-z0-9_]+", path)
    assert names.from_object_path(path) == name


@given(valid_names)
def test_unit_round_trip(name: str) -> None:
    assert names.from_unit(names.unit(name)) == name


@given(st.text(st.characters(codec="utf-8")))
def test_slug_is_legal_in_podman_and_as_a_file_name(name: str) -> None:
    slug = names.slug(name)
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", slug)
    assert len(names.container(name)) <= 63


@given(st.text(), st.text())
def test_strangers_do_not_crash_the_readers(text: str, tail: str) -> None:
    names.from_unit(text)
    names.from_object_path(text)
    names.from_object_path("/Model/" + tail.encode(errors="replace").decode())


def test_slugs_of_look_alikes_differ() -> None:
    alike = ["a/b", "a-b", "A-B", "a_b", "a b", "a.b", "a--b", "-a-b", "a-b-", "A/B", "á-b", "a\\b"]
    alike += ["".join(word) for word in itertools.product("aA/-_. é", repeat=4)]
    alike += ["x" * 60, "x" * 61, "x" * 60 + "/"]
    assert len(set(alike)) == len(alike)
    assert len({names.slug(name) for name in alike}) == len(alike)


@pytest.mark.parametrize(
    "other", ["llmuxd.service", "llmux-model@.service", "llmux-model@a.socket"]
)
def test_other_units_have_no_model(other: str) -> None:
    assert names.from_unit(other) is None


def test_unit_whose_instance_is_not_text_has_no_model() -> None:
    assert names.from_unit("llmux-model@\\xff.service") is None


def test_other_objects_have_no_model() -> None:
    assert names.from_object_path("/Manager") is None
    assert names.from_object_path("/Model/_ff") is None


@pytest.mark.parametrize("name", ["", "a\nb", "a\tb", "\x00", "a\x7f", "\x1b[31m"])
def test_empty_and_control_characters_are_refused(name: str) -> None:
    with pytest.raises(InvalidName) as caught:
        names.check(name)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidName, match="not valid text"):
        names.check("a\ud800")


@pytest.mark.parametrize(("char", "most"), [("x", 235), ("-", 58), ("é", 29)])
def test_longest_name_is_the_one_whose_unit_systemd_takes(char: str, most: int) -> None:
    assert len(names.unit(names.check(char * most))) <= 255
    with pytest.raises(InvalidName, match="too long"):
        names.check(char * (most + 1))
