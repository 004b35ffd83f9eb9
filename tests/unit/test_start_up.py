# SPDX-License-Identifier: MIT
"""What a model's unit loads before podman starts: somebody waits for each import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmuxd import accepted, files, stored
from llmuxd.llmux_yaml import parse
from llmuxd.model import identity, later
from llmuxd.model.checkpoint import Checkpoint, manifest

MODEL = parse("models: {a: {image: localhost/mine, devices: []}}", Path("llmux.yaml"))
MEANWHILE = {f"llmuxd.model.{name}" for name in later.MODULES} | set(later.OTHERS)
# Each takes milliseconds, and podman restores without it.
LATER = {
    *(
        "argparse",
        "asyncio",
        "ctypes",
        "logging",
        "shutil",
        "socket",
        "traceback",
        "typing",
        "yaml",
    ),
    *("llmuxd.llmux_yaml", "llmuxd.meter.reading", "llmuxd.model.gpu", "llmuxd.model.sweeping"),
    *MEANWHILE,
}
TELL = """
import json, os, sys

def tell():
    real = [name for name, each in sys.modules.items() if type(each).__name__ != "_LazyModule"]
    print(json.dumps(real), flush=True)
    os._exit(0)
"""
# Runs the helper as it is installed, until it would run what restores.
START = """
def look(event, told):
    if event == "subprocess.Popen" and "restore" in told[1]:
        tell()

sys.addaudithook(look)
sys.argv[1:] = ["start", "--", "a"]
from llmuxd.model.handing import main
main()
"""
LOAD = """
import llmuxd.model
from llmuxd.model import later
later.put_off()
later.load()
tell()
"""


def loaded_by(code: str) -> set[str]:
    """The modules that are loaded, and not just put off, when it tells."""
    told = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{TELL}{code}"],
        capture_output=True,
        check=True,
    )
    return set(json.loads(told.stdout))


@pytest.fixture
def restorable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with a good image, on a host that has what it takes to restore it."""
    programs, image = tmp_path / "bin", tmp_path / "image"
    for directory in (programs, image, files.runtime_root()):
        directory.mkdir()
    for name in ("criu", "nft", "podman"):
        (programs / name).write_text("#!/bin/sh\necho 1.0\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    (image / "inventory.img").touch()
    accepted.publish(MODEL)
    stored.bring_up_to_date()
    model = MODEL.models["a"]
    Checkpoint(
        model.name, "c0ffee", 21005, identity.here(model.definition, "i1", ()),
        0.0, 1.0, 0, str(image), manifest(image),
    ).save()  # fmt: skip


@pytest.mark.usefixtures("restorable")
def test_a_start_loads_nothing_that_it_does_not_need_before_podman() -> None:
    loaded = loaded_by(START)
    assert "llmuxd.model.starting" in loaded
    assert sorted(loaded & LATER) == []


def test_all_that_is_put_off_is_loaded_meanwhile() -> None:
    assert loaded_by(LOAD) >= MEANWHILE
