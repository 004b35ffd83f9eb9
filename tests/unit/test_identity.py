# SPDX-License-Identifier: MIT
import os
from dataclasses import fields
from pathlib import Path

import pytest

from llmuxd.model import identity
from llmuxd.model.identity import Identity

INFORMATION = """Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 17
GPU UUID: \t GPU-0f2c
"""
GPU = ["nvidia.com/gpu=0"]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with one GPU, below a directory."""
    for directory in ("nvidia/gpus/0000:01:00.0", "criu", "cdi", "bin"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "nvidia/version").write_text("NVRM version: 580.159.04\nGCC version: 13\n")
    (tmp_path / "nvidia/gpus/0000:01:00.0/information").write_text(INFORMATION)
    (tmp_path / "criu/cuda_plugin.so").write_bytes(b"plugin")
    (tmp_path / "cdi/nvidia.yaml").write_text("cdiVersion: 0.5.0")
    (tmp_path / "bin/cuda-checkpoint").write_bytes(b"tool")
    (tmp_path / "bin/cuda-checkpoint").chmod(0o755)
    monkeypatch.setattr(identity, "NVIDIA", tmp_path / "nvidia")
    monkeypatch.setattr(identity, "PLUGINS", (tmp_path / "no", tmp_path / "criu"))
    monkeypatch.setattr(identity, "CDI", (tmp_path / "cdi", tmp_path / "no"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def test_a_gpu_model_is_bound_to_all_that_its_restore_needs(host: Path) -> None:
    here = identity.here("d", "i", GPU)
    assert here.driver == "NVRM version: 580.159.04"
    assert here.gpus == "NVIDIA H100 80GB HBM3 GPU-0f2c"
    assert all([here.plugin, here.cuda_checkpoint, here.cdi, here.kernel])
    assert identity.here("d", "i", ["/dev/nvidia0"]) == here


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("nvidia/version", "driver"),
        ("nvidia/gpus/0000:01:00.0/information", "GPUs"),
        ("criu/cuda_plugin.so", "plugin"),
        ("cdi/nvidia.yaml", "CDI"),
        ("bin/cuda-checkpoint", "cuda-checkpoint"),
    ],
)
def test_each_change_of_the_host_is_named(host: Path, file: str, word: str) -> None:
    before = identity.here("d", "i", GPU)
    (host / file).write_text("another")
    changed = before.difference(identity.here("d", "i", GPU))
    assert changed is not None and word in changed and changed.count("changed") == 1


def test_a_card_that_nobody_has_opened_since_the_boot_is_the_same_one(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity.here("d", "i", GPU)
    information = host / "nvidia/gpus/0000:01:00.0/information"
    unknown = INFORMATION.replace("GPU-0f2c", "GPU-????????-????") + "Device Minor: \t 3\n"
    information.write_text(unknown)

    def open_card(path: str, flags: int) -> int:
        if path == f"{host}/nvidia3":
            information.write_text(INFORMATION)
            path = os.devnull
        return real_open(path, flags)

    real_open = os.open
    monkeypatch.setattr(identity, "CARD", f"{host}/nvidia")
    assert "GPU-?" in identity.here("d", "i", GPU).gpus  # there is no such device
    monkeypatch.setattr(os, "open", open_card)
    assert before.difference(identity.here("d", "i", GPU)) is None


def test_a_model_without_a_gpu_does_not_care_for_the_driver(host: Path) -> None:
    before = identity.here("d", "i", [])
    (host / "nvidia/version").write_text("another")
    assert identity.here("d", "i", []) == before
    assert before.driver == before.gpus == before.plugin == ""


def test_a_host_without_any_of_it_has_empty_parts(host: Path) -> None:
    for path in sorted(host.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    here = identity.here("d", "i", GPU)
    assert here.driver == here.gpus == here.plugin == here.cuda_checkpoint == here.cdi == ""


def test_each_part_has_its_words() -> None:
    empty = Identity(*["" for _ in fields(Identity)])
    other = Identity(*["x" for _ in fields(Identity)])
    said = empty.difference(other)
    assert said is not None and said.count("changed") == len(fields(Identity)) - 1


YAML = "the model's definition in llmux.yaml changed"
FORM = "it was taken by an llmuxd that made containers in another form"


@pytest.mark.parametrize(
    ("definition", "form", "why"),
    [
        ("d", identity.FORM, None),
        ("other", identity.FORM, YAML),
        # An upgrade changes both, for the form is in the definition; going back does too.
        ("other", "1", f"{FORM} (1, not {identity.FORM})"),
        ("other", "99", f"{FORM} (99, not {identity.FORM})"),
        ("d", "99", f"{FORM} (99, not {identity.FORM})"),
        # From before it was written down.
        ("d", "", None),
        ("other", "", f"{FORM}, or {YAML}"),
    ],
)
def test_another_form_of_container_is_told_from_another_definition(
    definition: str, form: str, why: str | None
) -> None:
    taken = Identity(definition, "i", "m", "k", "c", container_form=form)
    assert taken.redefined("d") == why
    here = Identity("d", "i", "m", "k", "c", container_form=identity.FORM)
    assert taken.difference(here) == why


@pytest.mark.parametrize(("begins", "times"), [(b"\x7fELF", 1), (b"#!/bin/sh\n", 3)])
def test_criu_is_asked_its_version_once_but_where_it_is_a_script(
    host: Path, monkeypatch: pytest.MonkeyPatch, begins: bytes, times: int
) -> None:
    program = host / "bin/criu"
    asked: list[str] = []

    def install(version: str) -> None:
        program.unlink(missing_ok=True)
        program.write_bytes(begins + version.encode())
        program.chmod(0o755)

        def run(argv: list[str], timeout: float) -> str:
            asked.append(version)
            return f"Version: {version}\n"

        monkeypatch.setattr(identity, "run", run)

    install("4.2")
    assert {identity.here("d", "i", []).criu for _ in range(3)} == {"Version: 4.2"}
    assert asked == ["4.2"] * times
    install("4.2.1")
    assert identity.here("d", "i", []).criu == "Version: 4.2.1"
