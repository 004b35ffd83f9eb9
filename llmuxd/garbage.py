# SPDX-License-Identifier: MIT
"""How often Python looks for objects that only hold each other, which stops the event loop.

Left to itself it goes through all that the daemon consists of, some 45,000 objects, every few
thousand requests: 22 ms in which no stream gets its next chunk. Yet a request leaves next to none
behind, since what it held is freed as soon as the last one lets go of it.
"""

import gc
import sys
from typing import Any

# Containers made more than freed before the youngest are looked through, some 2 MB of them; and
# how many such looks come before one at the older ones, and of those before one at all.
_THRESHOLDS = (10_000, 20, 50)


def settle() -> None:
    """What is here now stays: never look through it again. Call once the daemon is complete."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def let_go(transport: Any) -> None:
    """Its connection is lost. Python 3.11's transport holds a method of its own, and so itself: one
    that lived through a few of the collector's looks would stay until a look at everything."""
    if sys.version_info < (3, 12) and hasattr(transport, "_read_ready_cb"):
        transport._read_ready_cb = None
