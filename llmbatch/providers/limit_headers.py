"""Rate-limit headers of all families, as Limits; garbage is nothing said."""

from __future__ import annotations

from collections.abc import Mapping

from llmbatch.rules.limits import NO_LIMITS, Limits


def openai_limits(headers: Mapping[str, str], time_s: float) -> Limits:
    """``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``."""
    return NO_LIMITS


def anthropic_limits(headers: Mapping[str, str], time_s: float) -> Limits:
    """``anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}``."""
    return NO_LIMITS
