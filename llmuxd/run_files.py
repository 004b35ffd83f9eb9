# SPDX-License-Identifier: MIT
"""What one run of a model's unit keeps in /run/llmux: a file's name is the model's slug and one of
these behind it, but for CLEAN. Light, for handing.py.
"""

import os

from . import names

# systemd names it for a unit that asks for it (systemd.exec(5)).
DIRECTORY = "/run/llmux"

ACTIVATION = ".json"
CONMON = ".conmon.pid"
CUDA = ".cuda"
HOLD = ".hold"
LEAVE_ORDER = ".leave.json"
PARK_ORDER = ".park.json"
PARKED = ".parked.json"
PLACE = ".place.json"
SOCKET = ".sock"
STOPPING = ".stopping"
# What STOPPING holds where the stop left a good image, and nothing is to be cleaned up but this.
KEPT = b"kept"
# What is left of such a stop that has cleaned up after itself (packaging/llmux-clean-up.in), behind
# systemd's ID of this run of the unit (INVOCATION_ID in systemd.exec(5)): no later one takes it for
# its own.
CLEAN = ".clean"


def directory() -> str:
    """Where that is kept which a reboot makes void."""
    return os.environ.get("RUNTIME_DIRECTORY", DIRECTORY)


def path(model: str, suffix: str) -> str:
    """The file of a model's run."""
    return f"{directory()}/{names.slug(model)}{suffix}"


def forget(model: str, keep: str = "") -> None:
    """The unit is down. Of two runs at once there is one file each, so the mark goes last.

    `keep` is of one that stays.
    """
    begin = path(model, "")
    whole = (LEAVE_ORDER, PARK_ORDER, PARKED, SOCKET, CUDA, ACTIVATION, PLACE, CONMON, STOPPING)
    for suffix in whole:
        if suffix == keep:
            continue
        try:
            os.unlink(begin + suffix)
        except FileNotFoundError:
            continue


def leave_clean(model: str) -> None:
    """The unit goes down by a stop that kept a good image: there is nothing to be cleaned up."""
    clean = _clean()
    if clean is None:
        return
    forget(model, keep=STOPPING)
    # At any time there is the one or the other, whoever is killed and when.
    os.rename(path(model, STOPPING), clean)


def take_clean() -> bool:
    """Whether that is so in the unit whose command this is; the mark is gone then."""
    clean = _clean()
    try:
        if clean is not None:
            os.unlink(clean)
    except FileNotFoundError:
        return False
    return clean is not None


def _clean() -> str | None:
    run = os.environ.get("INVOCATION_ID")
    return f"{directory()}/{run}{CLEAN}" if run else None
