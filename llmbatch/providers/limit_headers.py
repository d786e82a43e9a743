"""Rate-limit headers of all families, as Limits; garbage is nothing said.

Sources: OpenAI guide "Rate limits", "Rate limits in headers"; Anthropic API reference, "Rate limits", "Response
headers"; Groq documentation, "Rate Limits"; Mistral, Together and Azure as seen in their answers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime

from llmbatch.rules.limits import Allowance, Limits

MINUTE_S = 60.0
# No limit in a header lasts longer than a day; the daily ones of Groq and OpenRouter do.
LONGEST_RESET_S = 86_400.0
# More requests or tokens than any provider grants.
MOST = 10**12

_NUMBER = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,9})?", re.ASCII)
_GO_DURATION = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{1,9})?(?:h|ms|us|µs|μs|ns|m|s))+", re.ASCII)
_GO_PART = re.compile(r"([0-9.]+)(h|ms|us|µs|μs|ns|m|s)", re.ASCII)
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_EPOCH_S, _EPOCH_MS = 1e9, 1e12
_NOT_SAID = Allowance()

# The names of one limit, the first that is there counts: OpenAI's (also Azure's, Groq's), Mistral's, then those of
# Together and OpenRouter, which do not say for how long the limit holds: only what is left, and until when.
_Names = tuple[str, ...]
_REQUESTS: tuple[_Names, _Names, _Names] = (
    ("x-ratelimit-limit-requests", "x-ratelimit-limit-req-minute"),
    ("x-ratelimit-remaining-requests", "x-ratelimit-remaining-req-minute", "x-ratelimit-remaining"),
    ("x-ratelimit-reset-requests", "x-ratelimit-reset"),
)
_TOKENS: tuple[_Names, _Names, _Names] = (
    ("x-ratelimit-limit-tokens", "x-ratelimit-limit-tokens-minute"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-remaining-tokens-minute", "x-tokenlimit-remaining"),
    ("x-ratelimit-reset-tokens", "x-tokenlimit-reset"),
)


def openai_limits(headers: Mapping[str, str], time_s: float, *, requests_window_s: float = MINUTE_S) -> Limits:
    """``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``, and what imitations say in their place.

    ``time_s`` is the Unix time. Groq counts the requests of a day: ``requests_window_s``.
    """
    return Limits(
        requests=_allowance(headers, time_s, *_REQUESTS, window_s=requests_window_s),
        tokens=_allowance(headers, time_s, *_TOKENS),
    )


def anthropic_limits(headers: Mapping[str, str], time_s: float) -> Limits:
    """``anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}``."""
    return Limits(
        *(_anthropic(headers, time_s, kind) for kind in ("requests", "tokens", "input-tokens", "output-tokens"))
    )


def reset_s(value: str, time_s: float) -> float | None:
    """Seconds from ``time_s`` until a limit is whole again, in any of the servers' ways to say it; None for garbage.

    A number of seconds, a Go duration (``6m0s``), a Unix time in seconds or milliseconds, or a time of RFC 3339.
    """
    value = value.strip()
    if _NUMBER.fullmatch(value):
        number = float(value)
        if number > _EPOCH_MS:
            number = number / 1000 - time_s
        elif number > _EPOCH_S:
            number -= time_s
        return _clamped(number)
    if _GO_DURATION.fullmatch(value):
        return _clamped(sum(_go_part_s(*part) for part in _GO_PART.findall(value)))
    try:
        until = datetime.fromisoformat(value)
    except ValueError:
        return None
    return None if until.tzinfo is None else _clamped(until.timestamp() - time_s)


def _go_part_s(number: str, unit: str) -> float:
    return float(number) * _UNIT_S[unit]


def _clamped(seconds: float) -> float | None:
    return min(max(seconds, 0.0), LONGEST_RESET_S) if math.isfinite(seconds) else None


def _anthropic(headers: Mapping[str, str], time_s: float, kind: str) -> Allowance:
    names = ((f"anthropic-ratelimit-{kind}-{what}",) for what in ("limit", "remaining", "reset"))
    return _allowance(headers, time_s, *names)


def _allowance(
    headers: Mapping[str, str],
    time_s: float,
    limit: _Names,
    remaining: _Names,
    reset: _Names,
    *,
    window_s: float = MINUTE_S,
) -> Allowance:
    most, left, until = _said(headers, limit), _said(headers, remaining), _said(headers, reset)
    if _unknown(most):
        return _NOT_SAID
    found = Allowance(_count(most), _count(left), reset_s(until, time_s), window_s)
    return _NOT_SAID if (found.limit, found.remaining, found.reset_s) == (None, None, None) else found


def _said(headers: Mapping[str, str], names: _Names) -> str:
    return next((value for name in names if (value := headers.get(name)) is not None), "").strip()


def _unknown(limit: str) -> bool:
    """Azure says 0 or -1 for a limit that it does not know; what is left of it then means nothing."""
    return limit.startswith("-") or _count(limit) == 0


def _count(value: str) -> int | None:
    return min(int(float(value)), MOST) if _NUMBER.fullmatch(value) else None
