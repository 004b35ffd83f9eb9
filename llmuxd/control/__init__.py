# SPDX-License-Identifier: MIT
"""org.llmux on D-Bus: one line a member, no logic.

No member takes long: what does is a job. What changes something asks first whether
its caller may. An error of errors.py goes to the caller by its D-Bus name; anything else is logged,
and the caller learns only that it was internal.
"""

from .exports import Control

__all__ = ["Control"]
