# SPDX-License-Identifier: MIT
"""llmux-erase: ends all models for good, and removes what they have outside of llmuxd's files.

For whoever removes llmuxd, whose packages call it: without llmuxd nobody would end a model, restore
an image, or remove either. So nothing is dumped on the way, not even for `snapshot: live`: that
image would be removed with its container as soon as it is written. llmuxd must not run any more, or
its next request would start another model.
"""

import logging
from collections.abc import Callable

from .. import journal, names
from . import caches, container, network, place
from .activation import Leave, order_leave
from .checkpoint import Checkpoint, recorded
from .process import CommandFailed, run

log = logging.getLogger("llmux-erase")

_UNITS = "llmux-model@*.service"
_QUERY_TIMEOUT = 30.0
# As long as systemd gives a unit, and a little more.
_STOP_TIMEOUT = 1260.0


def main() -> int:
    """Entry point; the exit status is 1 where something had to stay, and all else is gone."""
    journal.set_up(verbose=False)
    steps = (
        end_models, container.remove_all, remove_images, network.forget_rules, caches.forget_all,
    )  # fmt: skip
    return 0 if all([_done(step) for step in steps]) else 1


def end_models() -> None:
    """Stop the models' units, none of which leaves an image."""
    show = ["systemctl", "list-units", "--plain", "--no-legend", _UNITS]
    for line in run(show, _QUERY_TIMEOUT).splitlines():
        model = names.from_unit(line.split()[0])
        if model is not None:
            order_leave(model, Leave.STOP)
    run(["systemctl", "stop", _UNITS], _STOP_TIMEOUT)


def remove_images() -> None:
    """Those in a `checkpoint_dir`. The records stay, and say what became of the images."""
    for name in recorded():
        record = Checkpoint.load(name)
        if record is not None:
            place.remove(record)
            record.invalidate("llmuxd was removed, and all images with it")


def _done(step: Callable[[], None]) -> bool:
    try:
        step()
    except (CommandFailed, OSError) as error:
        log.error("%s", error)
        return False
    return True
