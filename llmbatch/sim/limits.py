"""The rate limiter: may a request go now, and what is left? The clock is an argument.

A meter is a bucket that refills evenly, kept as one number: the time at which it will be full again (GCRA). That is how
OpenAI's headers read: the reset of a limit of 10,000 per minute with 9,998 left is 12 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MINUTE_S = 60.0
DAY_S = 86_400.0
# Float sums of many small steps must not refuse the last request that fits.
_SLACK_S = 1e-6


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request may not go: ``limit`` are allowed in ``period_s``. ``wait_s`` is None when it never fits."""

    unit: str
    limit: float
    needs: float
    wait_s: float | None
    period_s: float = MINUTE_S

    @property
    def daily(self) -> bool:
        return self.period_s == DAY_S


@dataclass(frozen=True, slots=True)
class Reading:
    """What a meter shows. ``reset_s`` is the time until it is full again."""

    unit: str
    limit: float
    remaining: int
    reset_s: float
    period_s: float = MINUTE_S

    @property
    def daily(self) -> bool:
        return self.period_s == DAY_S


class Meter:
    """One limit, in ``unit`` per ``period_s``; the bucket holds what ``burst_s`` seconds refill, full at first."""

    def __init__(self, unit: str, limit: float, burst_s: float, period_s: float = MINUTE_S) -> None:
        self.unit = unit
        self.limit = limit
        self.period_s = period_s
        self._unit_s = period_s / limit
        # A bucket smaller than one request would never let one through.
        self._burst_s = max(burst_s, self._unit_s)
        self._full_at_s = -math.inf

    def changed(self, limit: float, burst_s: float) -> Meter:
        """The same meter under another limit, as full as this one is."""
        meter = Meter(self.unit, limit, burst_s, self.period_s)
        meter._full_at_s = self._full_at_s
        return meter

    def refusal(self, now_s: float, cost: float) -> Refusal | None:
        """None when ``cost`` fits now."""
        if cost * self._unit_s > self._burst_s + _SLACK_S:
            return Refusal(self.unit, self.limit, cost, None, self.period_s)
        wait_s = max(self._full_at_s, now_s) + cost * self._unit_s - now_s - self._burst_s
        return Refusal(self.unit, self.limit, cost, wait_s, self.period_s) if wait_s > _SLACK_S else None

    def take(self, now_s: float, cost: float) -> None:
        self._full_at_s = max(self._full_at_s, now_s) + cost * self._unit_s

    def reset_s(self, now_s: float) -> float:
        """Seconds until the bucket is full again."""
        return max(0.0, self._full_at_s - now_s)

    def remaining(self, now_s: float) -> int:
        return max(0, int((self._burst_s - self.reset_s(now_s) + _SLACK_S) / self._unit_s))


# What each limit counts, and in what time.
_METERS = {
    "rpm": ("requests", MINUTE_S),
    "tpm": ("tokens", MINUTE_S),
    "input_tpm": ("input-tokens", MINUTE_S),
    "output_tpm": ("output-tokens", MINUTE_S),
    "rpd": ("requests", DAY_S),
}


class Limiter:
    """Requests, tokens, and tokens of input and of output per minute, and requests per day; None for no limit.

    What a day allows may be used at once, whatever ``burst_s`` is.
    """

    def __init__(
        self,
        rpm: float | None,
        tpm: float | None,
        burst_s: float,
        input_tpm: float | None = None,
        output_tpm: float | None = None,
        rpd: float | None = None,
    ) -> None:
        self._burst_s = burst_s
        self._meters: dict[str, Meter] = {}
        limits = {"rpm": rpm, "tpm": tpm, "input_tpm": input_tpm, "output_tpm": output_tpm, "rpd": rpd}
        for name, limit in limits.items():
            if limit is not None:
                self.change(name, limit)

    def change(self, name: str, limit: float) -> None:
        """Another ``rpm``, ``tpm``, ``input_tpm``, ``output_tpm`` or ``rpd`` from now on."""
        unit, period_s = _METERS[name]
        burst_s = self._burst_s if period_s == MINUTE_S else period_s
        before = self._meters.get(name)
        self._meters[name] = Meter(unit, limit, burst_s, period_s) if before is None else before.changed(limit, burst_s)

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
        refusals = [refusal for meter in self._meters.values() if (refusal := meter.refusal(now_s, cost[meter.unit]))]
        if refusals:
            return max(refusals, key=lambda refusal: math.inf if refusal.wait_s is None else refusal.wait_s)
        for meter in self._meters.values():
            meter.take(now_s, cost[meter.unit])
        return None

    def readings(self, now_s: float) -> list[Reading]:
        return [
            Reading(meter.unit, meter.limit, meter.remaining(now_s), meter.reset_s(now_s), meter.period_s)
            for meter in self._meters.values()
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
