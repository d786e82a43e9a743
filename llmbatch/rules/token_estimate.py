"""How many tokens will a request take? From its length, and from what the answers so far took.

The mean, not the maximum: a limiter that reserves ``max_tokens`` uses a fraction of its allowance. What the estimate
misses is settled when the answer reports its usage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmbatch.records import Request, Usage
from llmbatch.rules.pace import Cost

# English text in the tokenizers of today; replaced by what the server reports.
CHARS_PER_TOKEN = 4.0
# Before the first answer, unless max_tokens says less.
ASSUMED_OUTPUT_TOKENS = 200.0
# The averages are over about this many of the last answers.
MEMORY = 64


class TokenEstimate:
    """Of one model's requests and answers. Owned by the limiter."""

    __slots__ = ("_answers", "_input_tokens", "_output_tokens", "_tokens_per_char")

    def __init__(self) -> None:
        self._answers = 0
        self._tokens_per_char = 1.0 / CHARS_PER_TOKEN
        self._input_tokens = 0.0
        self._output_tokens = ASSUMED_OUTPUT_TOKENS

    @property
    def mean(self) -> Cost:
        """What a request takes on average."""
        return Cost(self._input_tokens, self._output_tokens)

    def of(self, request: Request, chars: int) -> Cost:
        """What ``request``, which says ``chars`` characters, will take."""
        output = self._output_tokens
        most = request.params.get("max_tokens")
        if isinstance(most, int | float) and not isinstance(most, bool) and 0 < most < output:
            output = float(most)
        return Cost(chars * self._tokens_per_char, 0.0 if request.input is not None else output)

    def learn(self, chars: int, usage: Usage) -> None:
        """What an answer to ``chars`` characters really took."""
        if usage.input_tokens is None and usage.output_tokens is None:
            return
        self._answers += 1
        weight = max(1.0 / self._answers, 1.0 / MEMORY)
        if usage.input_tokens is not None:
            self._input_tokens += weight * (usage.input_tokens - self._input_tokens)
            if chars > 0:
                self._tokens_per_char += weight * (usage.input_tokens / chars - self._tokens_per_char)
        if usage.output_tokens is not None:
            self._output_tokens += weight * (usage.output_tokens - self._output_tokens)


def used(usage: Usage, estimate: Cost) -> Cost:
    """What an answer took; by estimate where it does not say."""
    return Cost(
        estimate.input_tokens if usage.input_tokens is None else float(usage.input_tokens),
        estimate.output_tokens if usage.output_tokens is None else float(usage.output_tokens),
    )


def chars_of(request: Request) -> int:
    """The characters of what ``request`` says: of its texts, not of the pictures beside them."""
    if request.input is not None:
        return len(request.input) if isinstance(request.input, str) else sum(map(len, request.input))
    return _chars(request.messages if request.body is None else request.body)


# A text longer than this in a place of its own is a picture or a file in base64.
_LONGEST_TEXT = 4_000_000
_NO_TEXT = frozenset({"image_url", "input_audio", "file", "source", "inlineData", "inline_data", "fileData"})


def _chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if len(value) <= _LONGEST_TEXT else 0
    if isinstance(value, Mapping):
        return sum(_chars(member) for name, member in value.items() if name not in _NO_TEXT)
    if isinstance(value, Sequence):
        return sum(map(_chars, value))
    return 0
