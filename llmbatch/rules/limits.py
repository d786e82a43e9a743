"""What a server said of its limits: per requests, and per tokens of each kind."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Allowance:
    """One limit: how many in each window of ``window_s`` seconds, how many are left, and when all are there again.

    None is what was not said, or was garbage.
    """

    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None
    window_s: float = 60.0


_NOT_SAID = Allowance()


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits that one answer told of. Anthropic counts input and output apart, others all tokens together."""

    requests: Allowance = field(default=_NOT_SAID)
    tokens: Allowance = field(default=_NOT_SAID)
    input_tokens: Allowance = field(default=_NOT_SAID)
    output_tokens: Allowance = field(default=_NOT_SAID)

    def __bool__(self) -> bool:
        return self != NO_LIMITS


NO_LIMITS = Limits()


def in_words(limits: Limits) -> str:
    """``500 requests/min (498 left), 200,000 tokens/min``: what was said, and nothing else."""
    kinds = (
        (limits.requests, "requests"),
        (limits.tokens, "tokens"),
        (limits.input_tokens, "input tokens"),
        (limits.output_tokens, "output tokens"),
    )
    return ", ".join(filter(None, (_said(allowance, unit) for allowance, unit in kinds)))


def _said(allowance: Allowance, unit: str) -> str:
    left = "" if allowance.remaining is None else f"{allowance.remaining:,} left"
    if allowance.limit is None:
        return f"{unit}: {left}" if left else ""
    per = {60.0: "min", 86_400.0: "day"}.get(allowance.window_s, f"{allowance.window_s:g} s")
    return f"{allowance.limit:,} {unit}/{per}" + (f" ({left})" if left else "")
