"""What a server said of its limits, in words."""

from __future__ import annotations

import pytest

from llmbatch.rules.limits import NO_LIMITS, Allowance, Limits, in_words


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (NO_LIMITS, ""),
        (Limits(Allowance(500, 498)), "500 requests/min (498 left)"),
        (Limits(Allowance(1000, window_s=86_400.0), Allowance(6000)), "1,000 requests/day, 6,000 tokens/min"),
        (Limits(input_tokens=Allowance(remaining=7)), "input tokens: 7 left"),
        (Limits(output_tokens=Allowance(9, 0, window_s=10)), "9 output tokens/10 s (0 left)"),
    ],
)
def test_in_words(limits: Limits, words: str) -> None:
    assert in_words(limits) == words
    assert bool(limits) is bool(words)
