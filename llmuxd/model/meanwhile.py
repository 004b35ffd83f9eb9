# SPDX-License-Identifier: MIT
"""A question that is asked while something longer goes on."""

from __future__ import annotations

import threading

# Not imported in fact: a start would wait for it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Answer = TypeVar("Answer")


def ask(question: Callable[[], Answer]) -> Callable[[], Answer]:
    """Ask `question` in a thread of its own, from now on.

    What is returned waits for the answer; what the question raised is raised there.
    """
    answers: list[Answer] = []
    errors: list[Exception] = []

    def put() -> None:
        try:
            answers.append(question())
        except Exception as error:
            errors.append(error)

    def answer() -> Answer:
        thread.join()
        if errors:
            raise errors[0]
        return answers[0]

    # Whoever gives up on the rest does not wait for this.
    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    return answer
