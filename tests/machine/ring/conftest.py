# SPDX-License-Identifier: MIT
"""Tests that run inside the booted machine, as root, against what is installed there."""

from collections.abc import Iterator

import pytest

from . import guest


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Each test begins with no model known, and ends with nothing that it did not put away."""
    guest.require_machine()
    guest.stop_everything()
    guest.wipe()
    guest.begin()
    yield
    guest.stop_everything()
    left = guest.leftovers()
    guest.wipe()
    assert not left, f"left behind: {left}"
