# SPDX-License-Identifier: MIT
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from llmuxd import names
from llmuxd.config import ModelConfig, Reach
from llmuxd.model import container, network
from llmuxd.model.container import LABEL, Container
from llmuxd.model.network import Network
from llmuxd.model.process import CommandFailed

MODEL = ModelConfig("a", "i")
NAME = names.container("a")
LOAD = ["nft", "--file", str(network.RULES)]


class Podman:
    """Answers podman and nft; a command that begins with these words fails so."""

    def __init__(self, **fails: str):
        self.fails = {tuple(key.split("_")): reason for key, reason in fails.items()}
        self.called: list[list[str]] = []
        self.table = "table inet llmux {}"

    def run(self, argv: Sequence[str], timeout: float) -> str:
        self.called.append(list(argv))
        for words, reason in self.fails.items():
            if tuple(argv[: len(words)]) == words:
                raise CommandFailed(argv, 125, reason)
        if argv[:2] == ["nft", "list"]:
            return self.table
        return json.dumps([{"labels": {LABEL: "a/b"}}]) if "ls" in argv else ""

    @property
    def verbs(self) -> list[str]:
        return [argv[2] if argv[1] == "network" else argv[1] for argv in self.called]


@pytest.fixture
def podman(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Podman:
    made = Podman(**getattr(request, "param", {}))
    for module in (container, network):
        monkeypatch.setattr(module, "run", made.run)
    return made


@pytest.mark.parametrize("reach", list(Reach))
def test_the_bridge_says_how_far_the_container_reaches(reach: Reach, podman: Podman) -> None:
    Container(ModelConfig("a", "i", network=reach)).run(21000)
    argv, run = podman.called
    assert run[:2] == ["podman", "run"] and f"--network={NAME}" in run
    assert argv[:3] == ["podman", "network", "create"] and argv[-1] == NAME
    assert {"isolate=true", "--disable-dns", "org.llmux.model=a"} <= set(argv)
    bridge = f"llmux{reach[0]}-{names.digest('a')}"
    assert ("--interface-name", bridge) in set(pairwise(argv))
    # The kernel's limit for an interface's name.
    assert len(bridge) <= 15


@pytest.mark.parametrize("words", [("--network=host",), ("--net", "slirp4netns")])
def test_a_network_that_is_configured_is_taken(words: tuple[str, ...], podman: Podman) -> None:
    mine = Container(ModelConfig("a", "i", podman_args=words))
    mine.network.close()
    mine.run(21000)
    (argv,) = podman.called
    assert argv[:2] == ["podman", "run"] and f"--network={NAME}" not in argv


@pytest.mark.parametrize(("reach", "loaded"), [("private", 1), ("internet", 1), ("open", 0)])
def test_the_rules_are_loaded_where_something_is_closed(
    reach: str, loaded: int, podman: Podman
) -> None:
    Network(ModelConfig("a", "i", network=Reach(reach))).close()
    assert podman.called.count(LOAD) == loaded


@pytest.mark.parametrize("by", ["others", "an upgrade", "a reboot"])
def test_rules_that_are_in_force_are_not_loaded_again(
    by: str, podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Network(MODEL)
    mine.close()
    mine.close()
    assert podman.called.count(LOAD) == 1
    match by:
        case "others":
            podman.table = "table inet llmux { flags dormant }"
        case "an upgrade":
            changed = tmp_path / "network.nft"
            changed.write_text("table inet llmux")
            monkeypatch.setattr(network, "RULES", changed)
        case _:
            monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "another"))
    mine.close()
    assert podman.called.count(["nft", "--file", str(network.RULES)]) == 2 - (by == "an upgrade")


@pytest.mark.parametrize("podman", [{"nft_list": "No such file or directory"}], indirect=True)
def test_rules_that_are_gone_are_loaded_each_time(podman: Podman) -> None:
    for _ in range(2):
        Network(MODEL).close()
    assert podman.called.count(LOAD) == 2


def test_the_rules_know_every_bridge() -> None:
    rules = network.RULES.read_text(encoding="utf-8")
    for reach in Reach:
        wanted = 0 if reach is Reach.OPEN else 2
        assert rules.count(f'iifname "llmux{reach[0]}-*"') == wanted


@pytest.mark.parametrize("podman", [{"nft": "nft: No such file or directory"}], indirect=True)
def test_rules_that_cannot_be_loaded_are_told_with_what_to_do(podman: Podman) -> None:
    with pytest.raises(CommandFailed, match="No such file or directory; install nftables, or"):
        Network(MODEL).close()


@pytest.mark.parametrize(
    "podman", [{"podman_network_create": "network name already exists"}], indirect=True
)
def test_a_network_that_was_left_is_made_anew(podman: Podman) -> None:
    """It may be one of another reach."""
    with pytest.raises(CommandFailed):
        Container(MODEL).run(21000)
    assert podman.verbs == ["create", "rm", "create"]


@pytest.mark.parametrize(
    "podman", [{"podman_network_create": "could not find free subnet"}], indirect=True
)
def test_without_a_network_there_is_no_start(podman: Podman) -> None:
    with pytest.raises(CommandFailed, match="free subnet"):
        Container(MODEL).run(21000)
    assert podman.verbs == ["create"]


@pytest.mark.parametrize(
    ("podman", "told"),
    [
        ({"podman_network_rm": "unable to find network: network not found"}, 0),
        ({"podman_network_rm": "it is being used"}, 1),
    ],
    indirect=["podman"],
)
def test_a_network_that_stays_keeps_nothing_from_its_end(
    podman: Podman, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    Container(MODEL).remove_network()
    assert podman.verbs == ["rm"]
    assert len(caplog.records) == told


def test_owners_are_the_models_by_their_own_names(podman: Podman) -> None:
    assert container.network_owners() == ["a/b"]
