# SPDX-License-Identifier: MIT
"""What models were seen to hold of a GPU, at most: so much each takes when it comes back."""

from collections.abc import Mapping


class Needs:
    """Bytes on each of a model's GPUs, by its name."""

    def __init__(self) -> None:
        self._most: dict[str, int] = {}

    def learn(self, model: str, held: int) -> bool:
        """It was seen to hold so much of one; whether it never held so much before."""
        more = held > self._most.get(model, 0)
        if more:
            self._most[model] = held
        return more

    def known(self, model: str) -> int | None:
        """None where it was never seen on a GPU."""
        return self._most.get(model)

    def forget(self, model: str) -> None:
        """The model is gone, or became another."""
        self._most.pop(model, None)

    def to_json(self) -> dict[str, object]:
        """All of it, for a file."""
        return dict(self._most)

    @classmethod
    def from_json(cls, raw: Mapping[str, object]) -> "Needs":
        """What `to_json` gave; what cannot be understood is left out."""
        found = cls()
        for model, held in raw.items():
            if isinstance(held, int):
                found.learn(model, held)
        return found
