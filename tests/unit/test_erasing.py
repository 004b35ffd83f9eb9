# SPDX-License-Identifier: MIT
"""llmux-erase, with commands that are only noted down."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llmuxd import files, journal, names
from llmuxd.model import container, erasing, network
from llmuxd.model.activation import Leave, take_leave_order
from llmuxd.model.checkpoint import Checkpoint
from llmuxd.model.process import CommandFailed

from .fake_units import a_checkpoint, a_model

A = names.unit("org/a")
ANSWERS = {
    ("systemctl", "list-units"): f"{A} loaded active running Model org/a\n",
    ("podman", "ps"): "c1\nc2\n",
    ("podman", "network"): "llmux-a\nllmux-b\n",
}


class Host:
    """What was run; commands that begin so fail."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.answers = ANSWERS
        self.broken: tuple[str, ...] = ()

    def run(self, argv: Sequence[str], timeout: float) -> str:
        self.ran.append(" ".join(argv))
        if self.broken and self.ran[-1].startswith(self.broken):
            raise CommandFailed(argv, 1, "broken")
        return self.answers.get((argv[0], argv[1]), "")

    def did(self, words: str) -> bool:
        return any(words in line for line in self.ran)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(journal, "set_up", lambda **_: None)
    for module in (container, erasing, network):
        monkeypatch.setattr(module, "run", host.run)
    return host


def test_the_models_end_without_an_image(host: Host) -> None:
    assert erasing.main() == 0
    assert take_leave_order("org/a").leave is Leave.STOP
    assert host.ran[1] == "systemctl stop llmux-model@*.service"


def test_containers_networks_and_rules_go(host: Host) -> None:
    erasing.main()
    (removal,) = (line for line in host.ran if line.startswith("podman rm"))
    assert "--force" in removal and "--volumes" in removal and removal.endswith(" c1 c2")
    assert host.did("podman network rm llmux-a llmux-b")
    assert host.ran[-1] == "nft add table inet llmux; delete table inet llmux"


def test_only_the_models_containers_and_networks_are_looked_for(host: Host) -> None:
    erasing.main()
    asked = [line for line in host.ran if line.startswith(("podman ps", "podman network ls"))]
    assert len(asked) == 2 and all("--filter label=org.llmux.model" in line for line in asked)


def test_images_elsewhere_go_and_the_records_say_why(host: Host, tmp_path: Path) -> None:
    place = tmp_path / "fast" / names.container("a")
    before = place.with_name(f"{place.name}.before")
    for directory in (place, before, tmp_path / "fast" / "somebody's"):
        directory.mkdir(parents=True)
        (directory / "pages-1.img").touch()
    replace(a_checkpoint(a_model("a")), place=str(place)).save()
    a_checkpoint(a_model("b")).save()
    assert erasing.main() == 0
    assert os.listdir(tmp_path / "fast") == ["somebody's"]
    for name in ("a", "b"):
        record = Checkpoint.load(name)
        assert record is not None and record.invalid.startswith("llmuxd was removed")


def test_caches_go(host: Host) -> None:
    (files.cache_root() / "a" / ".cache").mkdir(parents=True)
    assert erasing.main() == 0
    assert list(files.cache_root().iterdir()) == []


@pytest.mark.parametrize("broken", ["systemctl", "podman", "nft"])
def test_what_fails_keeps_nothing_else_from_going(host: Host, broken: str, tmp_path: Path) -> None:
    place = tmp_path / names.container("a")
    place.mkdir()
    replace(a_checkpoint(a_model("a")), place=str(place)).save()
    host.broken = (broken,)
    assert erasing.main() == 1
    assert not place.exists() and host.did("podman ps") and host.did("nft add")


def test_a_host_without_a_container_has_none_removed(host: Host) -> None:
    host.answers = {}
    assert erasing.main() == 0
    assert not host.did("podman rm") and not host.did("network rm")
