# SPDX-License-Identifier: MIT
"""The number of tokens that an answer says it cost, found without decoding the answer.

Engines tell it at the answer's end, in a stream's last events. A text that speaks of such numbers
is not taken for them: in JSON its quotes have backslashes before them.
"""

import re

# Enough for the usage and what vLLM and llama-server put after it.
_KEPT = 4096

_PROMPT = re.compile(rb'"(?:prompt|input)_tokens":\s*(\d{1,12})')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens":\s*(\d{1,12})')


class Tail:
    """The last bytes of an answer."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = b""

    def add(self, chunk: bytes) -> None:
        """The next piece of it."""
        self._kept = chunk[-_KEPT:] if len(chunk) >= _KEPT else (self._kept + chunk)[-_KEPT:]

    def tokens(self) -> tuple[int, int]:
        """Of the prompt and of the completion; 0 where nothing is said."""
        return _last(_PROMPT, self._kept), _last(_COMPLETION, self._kept)


def _last(pattern: re.Pattern[bytes], text: bytes) -> int:
    if b"_tokens" not in text:
        return 0
    found = pattern.findall(text)
    return int(found[-1]) if found else 0
