# SPDX-License-Identifier: MIT
"""The network of one model's container: shared with no other, and closed as far as configured.

podman makes the network, network.nft closes it. The rules know a network by the name of its
bridge, so they are there before it is, and stay when the host's other rules are loaded anew.
"""

import json
import logging
from pathlib import Path

from .. import names
from ..config import ModelConfig, Reach
from .process import CommandFailed, run

log = logging.getLogger("llmux-model")

RULES = Path(__file__).with_name("network.nft")
LABEL = "org.llmux.model"
_TIMEOUT = 30.0
_NO_NETWORK = ("network not found", "no such network")
# podman run's options that say which network a container is in.
_OPTIONS = ("--network", "--net")


class Network:
    """The network of one model, called as its container is."""

    def __init__(self, model: ModelConfig):
        self._model = model
        self.name = names.container(model.name)

    @property
    def is_ours(self) -> bool:
        """Whether there is one: podman_args may name another."""
        return not any(word.partition("=")[0] in _OPTIONS for word in self._model.podman_args)

    @property
    def bridge(self) -> str:
        """The name of its interface on the host; it has the 15 characters that there can be."""
        return f"llmux{self._model.network.value[0]}-{names.digest(self._model.name)}"

    def close(self) -> None:
        """Have the rules in force; CommandFailed where they cannot be, and nothing may start."""
        if not self.is_ours or self._model.network is Reach.OPEN:
            return
        argv = ["nft", "--file", str(RULES)]
        try:
            run(argv, _TIMEOUT)
        except CommandFailed as error:
            todo = "install nftables, or have 'network: open' in llmux.yaml"
            raise CommandFailed(argv, error.status, f"{error.reason}; {todo}") from None

    def create(self) -> list[str]:
        """Make it; what podman run is to be given for it."""
        if not self.is_ours:
            return []
        argv = [
            "podman", "network", "create",
            "--label", f"{LABEL}={self._model.name}",
            "--interface-name", self.bridge,
            # No packet goes from one such network to another.
            "--opt", "isolate=true",
            # There is nobody in it to be found by name, and podman's server of names would stay
            # in the unit's cgroup. The host's own servers are asked.
            "--disable-dns",
            self.name,
        ]  # fmt: skip
        try:
            run(argv, _TIMEOUT)
        except CommandFailed as error:
            if "already exists" not in error.reason:
                raise
            # Left by one that was cut short, and perhaps with another reach.
            self.remove()
            run(argv, _TIMEOUT)
        return [f"--network={self.name}"]

    def remove(self) -> None:
        """Make it not exist; its container does not any more."""
        try:
            run(["podman", "network", "rm", self.name], _TIMEOUT)
        except CommandFailed as error:
            if not any(words in error.reason for words in _NO_NETWORK):
                # Nothing of the model's is in it; its next start removes it.
                log.warning("its network stays: %s", error)


def owners() -> list[str]:
    """The models that have a network."""
    argv = ["podman", "network", "ls", "--filter", f"label={LABEL}", "--format", "json"]
    found = json.loads(run(argv, _TIMEOUT) or "[]")
    return [str(network["labels"][LABEL]) for network in found]
