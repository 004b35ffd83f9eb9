# SPDX-License-Identifier: MIT
"""The last lines of a benchmark: what was wanted, and what came out."""


class Goals:
    """Prints a line for each goal; `all_met` decides the exit status."""

    def __init__(self) -> None:
        self.all_met = True

    def line(self, name: str, measured: str, wanted: str, met: bool) -> None:
        """`goal <name>: <measured> (wanted <bound>): met`, or missed."""
        self.all_met &= met
        print(f"goal {name}: {measured} (wanted {wanted}): {'met' if met else 'missed'}")
