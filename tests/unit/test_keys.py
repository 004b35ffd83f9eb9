# SPDX-License-Identifier: MIT
"""The file of API keys."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmuxd import keys
from llmuxd.errors import ConfigInvalid
from llmuxd.keys import Key

from .fake_units import a_config
from .house import A, B

CONFIG = a_config(A, B)
HASH = hashlib.sha256(b"sk-1").hexdigest()


def parse(text: str) -> tuple[Key, ...]:
    return keys.parse(text, Path("keys.yaml"), CONFIG)


def test_every_setting() -> None:
    assert parse(
        f"alice: {{sha256: {HASH}}}\nbob:\n  sha256: {'AB' * 32}\n  models: [first, b]\n"
        "  requests_per_minute: 60\n  concurrency: 4\n  priority: -3\n"
    ) == (
        Key("alice", bytes.fromhex(HASH)),
        Key("bob", b"\xab" * 32, frozenset({"org/a", "b"}), 60, 4, -3, metrics=False),
    )
    assert parse(f"prometheus: {{sha256: {HASH}, models: [], metrics: true}}") == (
        Key("prometheus", bytes.fromhex(HASH), frozenset()),
    )
    assert parse("# nobody yet") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alice: {}", "keys.yaml:1:1: key 'alice' has no sha256"),
        ("alice: {sha256: sk-secret}", "64 hexadecimal digits"),
        (f"alice: {{sha256: {HASH}, model: [b]}}", "did you mean 'models'"),
        (f"alice: {{sha256: {HASH}, models: [zzz]}}", "there is no model 'zzz'"),
        (f"alice: {{sha256: {HASH}, concurrency: 0}}", "1 or more"),
        (f"a: {{sha256: {HASH}}}\nb: {{sha256: {HASH}}}", "one sha256"),
        ("- alice", "must be a mapping"),
        ("a: [sk-secret", "not valid YAML"),
    ],
)
def test_mistakes_are_told_and_no_secret_with_them(text: str, words: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse(text)
    assert words in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="No such file"):
        keys.load(replace(CONFIG, keys=str(tmp_path / "none")))


def test_relative_path_is_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, keys="llmux-keys")
    with pytest.raises(ConfigInvalid, match="LoadCredential=llmux-keys"):
        keys.load(config)
    (tmp_path / "llmux-keys").write_text(f"alice: {{sha256: {HASH}}}")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keys.load(config) == (Key("alice", bytes.fromhex(HASH)),)
    assert keys.load(CONFIG) is None


@given(st.text())
def test_whatever_is_written_is_taken_or_refused(text: str) -> None:
    try:
        parse(text)
    except ConfigInvalid as error:
        assert str(error).startswith("keys.yaml")
