# SPDX-License-Identifier: MIT
"""Carries policy's decisions out: queue, drain, activate, checkpoint, fail.

`switcher` is what others call. Behind it: `models`, what is remembered of each; `fleet`, all of
them and what is seen of their units; `admission`, who waits and who is served; `deciding`, what
policy is asked and told; `transitions`, the one move that a model makes at a time, `coming` and
`leaving` being the two ways; `operators`, what people ask for.

What a model is doing is never stored beside what systemd says: only the transition that runs here
is remembered.
"""

from .models import Model
from .switcher import Switcher

__all__ = ["Model", "Switcher"]
