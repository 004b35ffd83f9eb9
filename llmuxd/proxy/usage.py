# SPDX-License-Identifier: MIT
"""The number of tokens that an answer says it cost, found without decoding the answer.

A text that speaks of such numbers is not taken for them: in JSON its quotes have backslashes
before them. Streams that tell them more than once mean the last.
"""

import re

_MARK = b"_tokens"
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens":\s*(\d{1,12})')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens":\s*(\d{1,12})')
# As many bytes as one of these can have, a blank or two included: it may come in two pieces.
_KEPT = 48


class Tail:
    """Looks through an answer as it passes. `tokens`: of the prompt and of the completion; 0 where
    nothing was said."""

    __slots__ = ("_kept", "tokens")

    def __init__(self) -> None:
        self._kept = b""
        self.tokens = 0, 0

    def add(self, chunk: bytes) -> None:
        """The next piece of it."""
        seen = self._kept + chunk if self._kept else chunk
        self._kept = seen[-_KEPT:]
        if _MARK in seen:
            prompt, completion = self.tokens
            self.tokens = _last(_PROMPT, seen, prompt), _last(_COMPLETION, seen, completion)


def _last(pattern: re.Pattern[bytes], text: bytes, before: int) -> int:
    found = pattern.findall(text)
    return int(found[-1]) if found else before
