# SPDX-License-Identifier: MIT
"""What there is to be asked for."""

from ..state import State
from ..switcher import Switcher
from .access import Caller


def listing(switcher: Switcher, caller: Caller) -> dict[str, object]:
    """Every name and alias that the caller may use, as OpenAI lists models."""
    config = switcher.config
    named = [n for n in (*config.models, *config.aliases) if caller.may_use(config.resolve(n))]
    return {"object": "list", "data": [_entry(switcher, name) for name in named]}


def entry(switcher: Switcher, caller: Caller, asked: str) -> dict[str, object]:
    """One of them; NoSuchModel where there is none."""
    caller.check(switcher.config.resolve(asked, caller.may_use))
    return _entry(switcher, asked)


def _entry(switcher: Switcher, asked: str) -> dict[str, object]:
    name = switcher.config.resolve(asked)
    state = switcher.state(name) if name in switcher.names() else State.COLD
    return {
        "id": asked, "object": "model", "created": 0, "owned_by": "llmuxd",
        "root": name, "state": state.value,
    }  # fmt: skip
