# SPDX-License-Identifier: MIT
"""What there is to be asked for."""

from ..state import State
from ..switcher import Switcher


def listing(switcher: Switcher) -> dict[str, object]:
    """Every name and alias, as OpenAI lists models."""
    config = switcher.config
    return {
        "object": "list",
        "data": [entry(switcher, n) for n in (*config.models, *config.aliases)],
    }


def entry(switcher: Switcher, asked: str) -> dict[str, object]:
    """One of them; NoSuchModel where there is none."""
    name = switcher.config.resolve(asked)
    state = switcher.state(name) if name in switcher.names() else State.COLD
    return {
        "id": asked, "object": "model", "created": 0, "owned_by": "llmuxd",
        "root": name, "state": state.value,
    }  # fmt: skip
