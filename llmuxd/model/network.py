# SPDX-License-Identifier: MIT
"""The network of one model's container: shared with no other, and closed as far as configured.

container.py makes the network, network.nft closes it. The rules know a network by the name of its
bridge, so they are there before it is, and stay when the host's other rules are loaded anew.
"""

import contextlib
from pathlib import Path

from .. import files, names
from ..config import ModelConfig, Reach
from .process import CommandFailed, run

RULES = Path(__file__).with_name("network.nft")
# The table in them, as nft is told of it.
TABLE = ("inet", "llmux")
_TIMEOUT = 30.0
# podman run's options that say which network a container is in.
_OPTIONS = ("--network", "--net")


class Network:
    """The network of one model."""

    def __init__(self, model: ModelConfig):
        self._model = model

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
        found = _in_force()
        if found is not None and found == files.read_json(_loaded()):
            return
        argv = ["nft", "--file", str(RULES)]
        try:
            run(argv, _TIMEOUT)
        except CommandFailed as error:
            todo = "install nftables, or have 'network: open' in llmux.yaml"
            raise CommandFailed(argv, error.status, f"{error.reason}; {todo}") from None
        with contextlib.suppress(OSError):
            files.write_json(_loaded(), _in_force() or {})


def _in_force() -> dict[str, object] | None:
    """What the table is now, in nft's words, and of what rules; None where there is none.

    The kernel takes 15 ms to load rules, each time, and 2 ms to tell them.
    """
    try:
        table = run(["nft", "list", "table", *TABLE], _TIMEOUT)
    except CommandFailed:
        return None
    return {"rules": RULES.read_text(encoding="utf-8"), "table": table}


def _loaded() -> Path:
    """What `_in_force` said when they were loaded last: a table that differs is loaded anew."""
    return files.runtime_root() / "network.json"


def forget_rules() -> None:
    """Take the rules out of force, whether they were or not."""
    table = " ".join(TABLE)
    run(["nft", f"add table {table}; delete table {table}"], _TIMEOUT)
