"""The ``usage`` object of OpenAI and its imitations; what is missing or garbage is unknown, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmbatch.records import Usage

# More than one answer ever costs.
_MOST_USD = 1e6
_MEDIA = (("audio_tokens", "audio"), ("image_tokens", "image"))


def usage_of(usage: Any) -> Usage:
    """Tokens of Chat Completions as reported; None for what is missing, negative or no number.

    DeepSeek may say what it read from its cache in ``prompt_cache_hit_tokens`` alone.
    """
    if not isinstance(usage, dict):
        return Usage()
    prompt, completion = _object(usage, "prompt_tokens_details"), _object(usage, "completion_tokens_details")
    cached = count(prompt.get("cached_tokens"))
    return Usage(
        input_tokens=count(usage.get("prompt_tokens")),
        output_tokens=count(usage.get("completion_tokens")),
        cached_input_tokens=count(usage.get("prompt_cache_hit_tokens")) if cached is None else cached,
        reasoning_tokens=count(completion.get("reasoning_tokens")),
        cache_write_tokens=count(prompt.get("cache_write_tokens")),
        media=_media(prompt, completion),
    )


def responses_usage_of(usage: Any) -> Usage:
    """The same of Responses, which has other names."""
    if not isinstance(usage, dict):
        return Usage()
    input_, output = _object(usage, "input_tokens_details"), _object(usage, "output_tokens_details")
    return Usage(
        input_tokens=count(usage.get("input_tokens")),
        output_tokens=count(usage.get("output_tokens")),
        cached_input_tokens=count(input_.get("cached_tokens")),
        reasoning_tokens=count(output.get("reasoning_tokens")),
        cache_write_tokens=count(input_.get("cache_write_tokens")),
        media=_media(input_, output),
    )


def _media(*details: Mapping[str, Any]) -> dict[str, int] | None:
    """Tokens of sound and of pictures; None if the server does not speak of such."""
    told: dict[str, int] = {}
    for name, kind in _MEDIA:
        for one in details:
            if name in one and (tokens := count(one[name])) is not None:
                told[kind] = told.get(kind, 0) + tokens
    return told or None


def charged_usd(usage: Any) -> float | None:
    """OpenRouter's price of an answer. With a key of one's own (``is_byok``) it is their fee, and the upstream's bill
    comes on top (OpenRouter, "Usage Accounting")."""
    if not isinstance(usage, dict):
        return None
    cost = _dollars(usage.get("cost"))
    if cost is None or usage.get("is_byok") is not True:
        return cost
    upstream = _dollars(_object(usage, "cost_details").get("upstream_inference_cost"))
    return None if upstream is None else cost + upstream


def count(value: Any) -> int | None:
    """A number of tokens."""
    return value if type(value) is int and value >= 0 else None


def _dollars(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value <= _MOST_USD else None


def _object(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = usage.get(name)
    return found if isinstance(found, dict) else {}
