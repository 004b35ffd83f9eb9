# SPDX-License-Identifier: MIT
"""A question that is asked while something longer goes on."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Asked(Generic[Answer]):
    """Asks `question` in a thread of its own, from now on."""

    def __init__(self, question: Callable[[], Answer]):
        self._question = question
        self._answers: list[Answer] = []
        self._error: Exception | None = None
        # Whoever gives up on the rest does not wait for this.
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def answer(self) -> Answer:
        """Wait for it; what the question raised is raised here."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._answers[0]

    def _ask(self) -> None:
        try:
            self._answers.append(self._question())
        except Exception as error:
            self._error = error
