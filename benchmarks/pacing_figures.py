"""What came of a case, as the figures that were asked for: pure arithmetic over the times in its diary."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence

from pacing_virtual import Case, Diary

MINUTE_S = 60.0
# Sums of many small steps: what is a minute apart to the microsecond is a minute apart.
_SLACK_S = 1e-6
# An accepted rate is looked at over so long.
RATE_WINDOW_S = 10.0
# A new rate is found if it is kept for so long.
KEPT_S = 60.0


def used_share(case: Case, diary: Diary, start_s: float, stop_s: float | None = None) -> float:
    """What was let in from ``start_s`` on, of what the binding limit allows in that time."""
    stop_s = case.duration_s if stop_s is None else stop_s
    first, last = bisect_left(diary.accepted, start_s), bisect_left(diary.accepted, stop_s)
    shares = []
    if case.rpm is not None:
        shares.append((last - first) / (case.rpm / MINUTE_S * (stop_s - start_s)))
    if case.tpm is not None:
        shares.append(math.fsum(diary.tokens[first:last]) / (case.tpm / MINUTE_S * (stop_s - start_s)))
    return max(shares)


def refused_share(diary: Diary, start_s: float = 0.0) -> float:
    """Of all requests that were sent, those that were answered 429."""
    came = [len(times) - bisect_left(times, start_s) for times in (diary.accepted, diary.refused)]
    return came[1] / max(1, sum(came))


def most_in_window(times: Sequence[float], window_s: float = MINUTE_S) -> int:
    """The most events in any ``window_s`` seconds (half-open), exactly. ``times`` must be sorted."""
    most = first = 0
    for last, at_s in enumerate(times):
        while times[first] <= at_s - window_s + _SLACK_S:
            first += 1
        most = max(most, last - first + 1)
    return most


def most_tokens_in_window(times: Sequence[float], tokens: Sequence[float], window_s: float = MINUTE_S) -> float:
    """The most tokens that were let in within any ``window_s`` seconds."""
    most = total = 0.0
    first = 0
    for at_s, amount in zip(times, tokens, strict=True):
        total += amount
        while times[first] <= at_s - window_s + _SLACK_S:
            total -= tokens[first]
            first += 1
        most = max(most, total)
    return most


def settled_s(diary: Diary, changed_s: float, until_s: float, rpm: float, tolerance: float) -> float:
    """Seconds from a change of the limit until the accepted rate is, and for a minute stays, near the new one.

    Infinite if it never does. Rates are over 10 s, looked at every second.
    """
    start_s = changed_s
    while start_s + KEPT_S <= until_s:
        if all(
            abs(_rate(diary.accepted, start_s + step) / (rpm / MINUTE_S) - 1) <= tolerance
            for step in range(int(KEPT_S - RATE_WINDOW_S) + 1)
        ):
            return start_s - changed_s
        start_s += 1.0
    return math.inf


def _rate(times: Sequence[float], start_s: float, window_s: float = RATE_WINDOW_S) -> float:
    return (bisect_left(times, start_s + window_s) - bisect_left(times, start_s)) / window_s


def recovery_s(diary: Diary, over_s: float, rpm: float, share: float = 0.9) -> float:
    """Seconds from the first good answer after ``over_s`` until ``share`` of the rate is let in (over 5 s)."""
    first = bisect_left(diary.answered, over_s)
    if first == len(diary.answered):
        return math.inf
    good_s = start_s = diary.answered[first]
    while start_s + 5.0 <= diary.accepted[-1]:
        if _rate(diary.accepted, start_s, 5.0) >= share * rpm / MINUTE_S:
            return start_s - good_s
        start_s += 0.25
    return math.inf


def unheard_s(diary: Diary, over_s: float) -> float:
    """Seconds from the end of an outage until the first good answer."""
    first = bisect_left(diary.answered, over_s)
    return diary.answered[first] - over_s if first < len(diary.answered) else math.inf


def most_probes(diary: Diary, start_s: float, end_s: float, window_s: float = 30.0) -> int:
    """The most requests sent in any 30 s between the two times."""
    return most_in_window([at_s for at_s in diary.sent if start_s <= at_s < end_s], window_s)


def work_per_s(case: Case, diary: Diary, start_s: float) -> float:
    """Seconds of slots' work that came back as answers, for each second: throughput, whatever the lengths."""
    first = bisect_left(diary.answered, start_s)
    return math.fsum(diary.work[first:]) / (case.duration_s - start_s)


def mean_in_flight(case: Case, diary: Diary, start_s: float) -> float:
    """How many requests were in flight, over the time from ``start_s`` on."""
    spans = zip(diary.in_flight_at, [*diary.in_flight_at[1:], case.duration_s], diary.in_flight, strict=True)
    weighted = [count * (min(end, case.duration_s) - max(at, start_s)) for at, end, count in spans if end > start_s]
    return math.fsum(weighted) / (case.duration_s - start_s)


def most_in_flight(diary: Diary, start_s: float) -> float:
    """The most requests in flight at once, from ``start_s`` on."""
    return max(diary.in_flight[bisect_left(diary.in_flight_at, start_s) :])


def middle_and_worst(values: Sequence[float], *, most: bool) -> tuple[float, float]:
    """The median, and the value that is furthest on the wrong side of an upper (``most``) or lower bound."""
    return statistics.median(values), max(values) if most else min(values)
