"""May a request go now, else in how many seconds? Evenly spaced, never above the limit in any sliding minute.

The generic cell rate algorithm (ITU-T I.371): one number, the theoretical arrival time of the next request,
says everything about the past. A tolerance lets a late timer catch up; the interval is stretched by it,
so that even with the catch-up no 60 s hold more than the limit.

Tokens are taken by estimate and settled when the real number is known: who used more than was taken leaves a debt,
which the next one waits for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

# Timers of an event loop come some milliseconds late; what they lost may be made up within this time.
TOLERANCE_S = 0.05
MINUTE_S = 60.0
# Of a limit in tokens, whose use is only known afterwards: what is left covers the error of the estimates.
TOKEN_SHARE = 0.99
# Tokens that were taken and not used are kept for as much as the limit grants in this time.
MOST_CREDIT_S = 20.0
# When nothing was owed for so long, the limit does not bind, and there is nothing to make up for.
IDLE_S = 5.0

Kind = Literal["requests", "tokens", "input_tokens", "output_tokens"]
KINDS: tuple[Kind, ...] = ("requests", "tokens", "input_tokens", "output_tokens")


def unit_s(kind: Kind, per_minute: float) -> float:
    """Seconds of the limit that one request, or one token, takes up."""
    if kind == "requests":
        return (MINUTE_S + TOLERANCE_S) / per_minute
    return MINUTE_S / (per_minute * TOKEN_SHARE)


class Meter(Protocol):
    """One limit per minute. Times are seconds of the run's clock, amounts requests or tokens."""

    per_minute: float

    def wait_s(self, now_s: float, amount: float = 1.0) -> float:
        """Seconds until so much may go; 0 if it may go now."""
        ...

    def take(self, now_s: float, amount: float = 1.0) -> None:
        """Count what goes at ``now_s``. Call it only when ``wait_s`` was 0."""
        ...

    def settle(self, now_s: float, difference: float) -> None:
        """So much more than was taken was really used, or less if it is negative."""
        ...


class Pace:
    """Even spacing for one limit per minute. Owned by one limiter; not thread-safe."""

    __slots__ = ("_due_s", "_unit_s", "per_minute")

    _kind: Kind = "requests"

    def __init__(self, per_minute: float) -> None:
        self._due_s = float("-inf")
        self.change(per_minute)

    def change(self, per_minute: float) -> None:
        """Another limit from here on."""
        self.per_minute = per_minute
        self._unit_s = unit_s(self._kind, per_minute)

    def wait_s(self, now_s: float, amount: float = 1.0) -> float:
        """Seconds until the next may go, whatever its amount: what is larger than the pace is waited for behind it."""
        return max(0.0, self._due_s - TOLERANCE_S - now_s)

    def take(self, now_s: float, amount: float = 1.0) -> None:
        self._due_s = max(self._due_s, now_s) + amount * self._unit_s

    def settle(self, now_s: float, difference: float) -> None:
        if difference > 0:
            self._due_s = max(self._due_s, now_s) + difference * self._unit_s

    def hold(self, until_s: float) -> None:
        """Let nothing go before ``until_s``."""
        self._due_s = max(self._due_s, until_s + TOLERANCE_S)


class TokenPace(Pace):
    """Even spacing of tokens. What was taken and not used is there for those to come, idle time is not."""

    __slots__ = ("_credit_s",)

    _kind: Kind = "tokens"

    def __init__(self, per_minute: float) -> None:
        super().__init__(per_minute)
        self._credit_s = 0.0

    def wait_s(self, now_s: float, amount: float = 1.0) -> float:
        return max(0.0, self._due_s - self._credit_s - TOLERANCE_S - now_s)

    def take(self, now_s: float, amount: float = 1.0) -> None:
        if self._due_s < now_s - IDLE_S:
            self._credit_s = 0.0
        late_s = min(self._credit_s, max(0.0, self._due_s - now_s))
        self._credit_s -= late_s
        self._due_s = max(self._due_s - late_s, now_s) + amount * self._unit_s

    def settle(self, now_s: float, difference: float) -> None:
        seconds = difference * self._unit_s
        if seconds < 0:
            self._credit_s = min(self._credit_s - seconds, MOST_CREDIT_S)
            return
        paid_s = min(self._credit_s, seconds)
        self._credit_s -= paid_s
        self._due_s = max(self._due_s, now_s) + seconds - paid_s


@dataclass(frozen=True, slots=True)
class Cost:
    """What one request takes from the meters, by estimate or in truth."""

    input_tokens: float = 0.0
    output_tokens: float = 0.0

    def of(self, kind: Kind) -> float:
        """The amount that counts for a meter of this kind."""
        if kind == "requests":
            return 1.0
        if kind == "tokens":
            return self.input_tokens + self.output_tokens
        return self.input_tokens if kind == "input_tokens" else self.output_tokens


NO_TOKENS = Cost()


class Meters:
    """The limits of one endpoint and key, or of one model there; ``kinds`` are those that there are."""

    __slots__ = ("_meters", "counts_tokens", "kinds")

    def __init__(self, meters: Mapping[Kind, Meter] | None = None) -> None:
        self._meters: dict[Kind, Meter] = dict(meters or {})
        self._look()

    def __iter__(self) -> Iterator[tuple[Kind, Meter]]:
        return iter(self._meters.items())

    def get(self, kind: Kind) -> Meter | None:
        return self._meters.get(kind)

    def put(self, kind: Kind, meter: Meter | None) -> None:
        """Another meter in this place, or none."""
        if meter is None:
            self._meters.pop(kind, None)
        else:
            self._meters[kind] = meter
        self._look()

    def wait(self, now_s: float, cost: Cost) -> tuple[float, Kind | None]:
        """The longest wait, and the kind of limit that asks for it."""
        longest_s, longest = 0.0, None
        for kind, meter in self._meters.items():
            wait_s = meter.wait_s(now_s, cost.of(kind))
            if wait_s > longest_s:
                longest_s, longest = wait_s, kind
        return longest_s, longest

    def take(self, now_s: float, cost: Cost) -> None:
        """Count one request."""
        for kind, meter in self._meters.items():
            meter.take(now_s, cost.of(kind))

    def settle(self, now_s: float, taken: Cost, used: Cost) -> None:
        """The estimate was ``taken``, the truth is ``used``."""
        for kind, meter in self._meters.items():
            if kind != "requests":
                meter.settle(now_s, used.of(kind) - taken.of(kind))

    def _look(self) -> None:
        """Asked for every request, so it is kept."""
        self.kinds = tuple(self._meters)
        self.counts_tokens = any(kind != "requests" for kind in self.kinds)


def pace_for(kind: Kind, per_minute: float) -> Pace:
    """The pace of one kind of limit."""
    return Pace(per_minute) if kind == "requests" else TokenPace(per_minute)
