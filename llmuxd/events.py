# SPDX-License-Identifier: MIT
"""What happens to models and jobs, as the journal is told it in fields.

`log.info("…", extra=about(model=name))` makes a line that `journalctl LLMUX_MODEL=name` finds. An
`Event` also has an entry in the message catalog, packaging/llmux.catalog, which says what it means
and what to do: `journalctl -x` prints it.
"""

from collections.abc import Mapping
from enum import Enum


class Event(Enum):
    """What has an entry in the catalog. The values are MESSAGE_IDs, for ever."""

    MODEL_SERVES = "e524b8c913014ce9abf9ac0c2aac238e"
    MODEL_COLD_START = "db4b4e7eec5244868ed47f06128d7a1d"
    MODEL_RESTORE_FAILED = "aaf6b556c42e4b33b30d7893b4d32b9c"
    MODEL_START_FAILED = "6ecb449707b749e988444c16476f5134"
    MODEL_ENDED = "6414914d9f1943d79faace765c9e9638"
    CHECKPOINT_WRITTEN = "a7b9bf297a1f4c118160ddd48a7a1f65"
    CHECKPOINT_FAILED = "5b36037992a34984a94516b3f9e8cd77"
    CHECKPOINT_USELESS = "13ec39b0cff3424ba4492444d68c4a14"
    CHECKPOINT_REMOVED = "0a8a0ab5b0814b1c947f44a5fd0f2c55"
    MODEL_PARKED = "086db22dad6d482187339c37113e4f15"
    PARK_FAILED = "def72185b2b84110b426dc3370a3378c"
    WAKE_FAILED = "24d56c682cc24206b51232ea55f8e223"
    MODEL_FAILED = "3c2630b68905417c958b9806f35aae61"
    SERVER_UNREACHABLE = "818cb61ea1614470a67ef68cd8fdd29d"
    MEMORY_SHORT = "f7065f9477b048198b90a654cf4b12ee"
    JOB_ENDED = "50e2db4fd87b49108417342b910c7ff2"
    JOB_FAILED = "3d7e147e57d24e70ab9a3a291cfe83b6"
    CONFIG_RELOADED = "8cf9b2ae64f54986b532eda01d9114b4"
    CONFIG_REFUSED = "0fb476d10457497686264bc9e1a8a448"
    BUS_LOST = "4b1153c772794833b92c7ebb7064bbb8"
    GPUS_UNMEASURED = "a241b4df17154c15a54e15747b3fca14"
    POLKIT_AWAY = "aa5710114e414a928837d28d95f6a782"


def about(
    event: Event | None = None,
    *,
    model: str = "",
    job: int = 0,
    phase: str = "",
    seconds: float | None = None,
    parts: Mapping[str, float] | None = None,
) -> dict[str, object]:
    """The `extra` of a log call. `phase`: what it did, or how it came to be, in a word or two.

    `parts` are those of `seconds`, by name.
    """
    fields = {
        "MESSAGE_ID": event.value if event else "",
        "LLMUX_MODEL": model,
        "LLMUX_JOB": str(job or ""),
        "LLMUX_PHASE": phase,
        "LLMUX_SECONDS": "" if seconds is None else f"{seconds:.3f}",
    }
    for part, measured in (parts or {}).items():
        fields[f"LLMUX_SECONDS_{part.upper()}"] = f"{measured:.3f}"
    return {"journal": {key: value for key, value in fields.items() if value}}
