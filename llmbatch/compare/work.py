"""A row that computes: pure Python, as a tokeniser or a parser that somebody wrote without a library in C."""

from __future__ import annotations

from typing import Any

# About 50 ms on a machine of 2024.
_ROUNDS = 80
_TEXT = "The parcel came late, which the writer minds, but what was in it works well, which weighs more. " * 2
_LONGEST = 7
_VOCABULARY = {_TEXT[start : start + length] for start in range(0, len(_TEXT), 3) for length in range(1, _LONGEST + 1)}


def tokenised(row: dict[str, Any]) -> dict[str, Any]:
    """A hook for ``--before``: splits a text into the longest known pieces, again and again; the row stays as it is."""
    for _ in range(_ROUNDS):
        _pieces(_TEXT * 4)
    return row


def _pieces(text: str) -> list[str]:
    found, start = [], 0
    while start < len(text):
        length = next((n for n in range(_LONGEST, 1, -1) if text[start : start + n] in _VOCABULARY), 1)
        found.append(text[start : start + length])
        start += length
    return found
