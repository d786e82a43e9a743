"""The rate limiter: may a request go now, and what is left? The clock is an argument.

A meter is a bucket that refills evenly, kept as one number: the time at which it will be full again (GCRA). That is how
OpenAI's headers read: the reset of a limit of 10,000 per minute with 9,998 left is 12 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Float sums of many small steps must not refuse the last request that fits.
_SLACK_S = 1e-6


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request may not go. ``wait_s`` is None when it never fits."""

    unit: str
    limit: float
    needs: float
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a meter shows. ``reset_s`` is the time until it is full again."""

    unit: str
    limit: float
    remaining: int
    reset_s: float


class Meter:
    """One limit, in ``unit`` per minute; the bucket holds what ``burst_s`` seconds refill, full at first."""

    def __init__(self, unit: str, per_minute: float, burst_s: float) -> None:
        self.unit = unit
        self.per_minute = per_minute
        self._unit_s = 60.0 / per_minute
        # A bucket smaller than one request would never let one through.
        self._burst_s = max(burst_s, self._unit_s)
        self._full_at_s = -math.inf

    def refusal(self, now_s: float, cost: float) -> Refusal | None:
        """None when ``cost`` fits now."""
        if cost * self._unit_s > self._burst_s + _SLACK_S:
            return Refusal(self.unit, self.per_minute, cost, None)
        wait_s = max(self._full_at_s, now_s) + cost * self._unit_s - now_s - self._burst_s
        return Refusal(self.unit, self.per_minute, cost, wait_s) if wait_s > _SLACK_S else None

    def take(self, now_s: float, cost: float) -> None:
        self._full_at_s = max(self._full_at_s, now_s) + cost * self._unit_s

    def reset_s(self, now_s: float) -> float:
        """Seconds until the bucket is full again."""
        return max(0.0, self._full_at_s - now_s)

    def remaining(self, now_s: float) -> int:
        return max(0, int((self._burst_s - self.reset_s(now_s) + _SLACK_S) / self._unit_s))


class Limiter:
    """Requests, tokens, and tokens of input and of output per minute, any of them None for no limit."""

    def __init__(
        self,
        rpm: float | None,
        tpm: float | None,
        burst_s: float,
        input_tpm: float | None = None,
        output_tpm: float | None = None,
    ) -> None:
        limits = {"requests": rpm, "tokens": tpm, "input-tokens": input_tpm, "output-tokens": output_tpm}
        self._meters = [Meter(unit, limit, burst_s) for unit, limit in limits.items() if limit is not None]

    def admit(self, now_s: float, input_tokens: int, output_tokens: int) -> Refusal | None:
        """Take one request of so many tokens from every meter, or say why not and take nothing."""
        if not self._meters:
            return None
        cost = {
            "requests": 1,
            "tokens": input_tokens + output_tokens,
            "input-tokens": input_tokens,
            "output-tokens": output_tokens,
        }
        refusals = [refusal for meter in self._meters if (refusal := meter.refusal(now_s, cost[meter.unit]))]
        if refusals:
            return max(refusals, key=lambda refusal: math.inf if refusal.wait_s is None else refusal.wait_s)
        for meter in self._meters:
            meter.take(now_s, cost[meter.unit])
        return None

    def readings(self, now_s: float) -> list[Reading]:
        return [
            Reading(meter.unit, meter.per_minute, meter.remaining(now_s), meter.reset_s(now_s))
            for meter in self._meters
        ]


def go_duration(seconds: float) -> str:
    """A time span as Go prints it, to the millisecond: 12ms, 1.935s, 6m0s, 1h2m3s."""
    ms = math.ceil(seconds * 1000 - 0.001)
    if ms <= 0:
        return "0s"
    if ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + rest
