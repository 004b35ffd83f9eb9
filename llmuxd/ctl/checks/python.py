# SPDX-License-Identifier: MIT
"""The Python that llmuxd runs on, and what it needs of its packages."""

import re

from .host import version
from .look import Look
from .result import Result, fail, ok, skip

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+?) ?\(?>=([0-9.]+)\)?")


def python(look: Look) -> Result:
    """All of it is here, and as new as llmuxd's own package says."""
    wanted = _wanted(look)
    if not wanted:
        return skip("python", "llmuxd is not installed, and its package does not say what it needs")
    here = {name: look.host.package(name) for name in wanted}
    wrong = {
        name: f"{name} {found} is too old" if found else f"{name} is not here"
        for name, found in here.items()
        if version(found or "") < version(wanted[name])
    }
    if wrong:
        needed = ", ".join(f"{name} {wanted[name]}" for name in wrong)
        hint = f"install {needed} or newer, or have all of them by 'make install-venv'"
        return fail("python", ", ".join(wrong.values()), hint)
    own = here.pop("python", None)
    return ok("python", f"{own} with {', '.join(f'{name} {here[name]}' for name in here)}")


def _wanted(look: Look) -> dict[str, str]:
    """The least version of each, by name; `python` is Python's own."""
    found = (_REQUIREMENT.match(line) for line in look.host.requirements())
    return {each[1]: each[2] for each in found if each is not None}
