"""The ``usage`` object of OpenAI and its imitations; what is missing or garbage is unknown, never 0."""

from __future__ import annotations

from typing import Any

from llmbatch.records import Usage


def usage_of(usage: Any) -> Usage:
    """Tokens as reported; None for what is missing, negative or no number."""
    if not isinstance(usage, dict):
        return Usage()
    prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    return Usage(
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
        cached_input_tokens=_count(prompt.get("cached_tokens")) if isinstance(prompt, dict) else None,
        reasoning_tokens=_count(completion.get("reasoning_tokens")) if isinstance(completion, dict) else None,
        cache_write_tokens=_count(prompt.get("cache_write_tokens")) if isinstance(prompt, dict) else None,
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
