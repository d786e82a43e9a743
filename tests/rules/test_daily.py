"""Requests in any 24 hours by hours of the wall clock, and how it is said when a quota returns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from random import Random
from zoneinfo import ZoneInfo

import pytest

from llmbatch.rules.daily import HOUR_S, counted, hour_of, next_midnight, reset_words, returns_at

NOON = 1_795_348_800.0  # 2026-11-22 12:00 UTC
HOUR = hour_of(NOON)


@pytest.mark.parametrize(
    ("now_unix_s", "hour"), [(0.0, 0), (3599.9, 0), (3600.0, 1), (NOON, 498_708), (NOON - 0.1, 498_707)]
)
def test_hours_have_numbers(now_unix_s: float, hour: int) -> None:
    assert hour_of(now_unix_s) == hour


@pytest.mark.parametrize(
    ("hours", "kept"),
    [
        ({}, {}),
        ({HOUR: 3}, {HOUR: 3}),
        ({HOUR - 24: 3}, {HOUR - 24: 3}),  # begun less than 25 hours ago: part of it may be within 24
        ({HOUR - 25: 3}, {}),
        ({HOUR + 2: 3}, {HOUR + 2: 3}),  # the clock was set back
        ({HOUR + 9_000: 3}, {}),  # the clock was a year ahead
        ({HOUR: 0, HOUR - 1: -2}, {}),
    ],
)
def test_what_still_counts(hours: dict[int, int], kept: dict[int, int]) -> None:
    assert counted(hours, HOUR) == kept


@pytest.mark.parametrize(
    ("hours", "per_day", "returns_s"),
    [
        ({}, 1, NOON),
        ({HOUR: 4}, 5, NOON),
        ({HOUR: 5}, 5, NOON + 25 * HOUR_S),
        ({HOUR - 24: 1, HOUR: 4}, 5, NOON + HOUR_S),
        ({HOUR - 24: 1, HOUR - 3: 1, HOUR: 4}, 5, NOON + 22 * HOUR_S),  # one too many: the first hour is not enough
        ({HOUR - 30: 5}, 5, NOON),
        ({HOUR - 24: 5, HOUR - 1: 1}, 1, NOON + 24 * HOUR_S),  # the limit is lower than it was
    ],
)
def test_when_one_is_free_again(hours: dict[int, int], per_day: int, returns_s: float) -> None:
    assert returns_at(hours, per_day, NOON + 60) == (returns_s if returns_s > NOON else NOON + 60)


def test_never_more_than_the_limit_in_any_24_hours() -> None:
    chance, hours, sent, now_s = Random(5), dict[int, int](), list[float](), NOON
    for _ in range(4000):
        now_s += chance.expovariate(1 / 400)
        hours = counted(hours, hour_of(now_s))
        if sum(hours.values()) < 100:
            hours[hour_of(now_s)] = hours.get(hour_of(now_s), 0) + 1
            sent.append(now_s)
        elif chance.random() < 0.02:
            now_s = returns_at(hours, 100, now_s)
    days = [sum(1 for other in sent if time_s - 24 * HOUR_S < other <= time_s) for time_s in sent]
    assert max(days) == 100


@pytest.mark.parametrize(
    ("left_s", "zone", "words"),
    [
        (7 * 3600 + 12 * 60, UTC, "at 2026-11-22 19:12+00:00 (in 7 h 12 min)"),
        (7 * 3600 + 12 * 60, timezone(timedelta(hours=1)), "at 2026-11-22 20:12+01:00 (in 7 h 12 min)"),
        (12 * 3600 + 300, ZoneInfo("Asia/Kolkata"), "at 2026-11-23 05:35+05:30 (in 12 h 05 min)"),
        (3 * 60, UTC, "at 2026-11-22 12:03+00:00 (in 3 min)"),
        (61, UTC, "at 2026-11-22 12:02+00:00 (in 2 min)"),  # never before it is there
        (59.5, UTC, "at 2026-11-22 12:01+00:00 (in 1 min)"),
        (0.2, UTC, "at 2026-11-22 12:01+00:00 (in 1 s)"),
        (3600, UTC, "at 2026-11-22 13:00+00:00 (in 1 h 00 min)"),
        (6 * 86_400, UTC, "at 2026-11-28 12:00+00:00 (in 6 days)"),
        (0, UTC, "now"),
        (-5, UTC, "now"),
        (1e18, UTC, "in more than a year"),
        (float("inf"), UTC, "in more than a year"),
    ],
)
def test_when_a_quota_returns_in_words(left_s: float, zone: tzinfo, words: str) -> None:
    assert reset_words(NOON + left_s, NOON, zone) == words


PACIFIC = ZoneInfo("America/Los_Angeles")


@pytest.mark.parametrize(
    ("now", "midnight"),
    [
        ("2026-11-22 12:00+00:00", "2026-11-23 08:00+00:00"),
        ("2026-11-22 07:59+00:00", "2026-11-22 08:00+00:00"),
        ("2026-11-22 08:00+00:00", "2026-11-23 08:00+00:00"),
        ("2026-07-01 12:00+00:00", "2026-07-02 07:00+00:00"),  # summer time
        ("2026-11-01 08:30+00:00", "2026-11-02 08:00+00:00"),  # the day on which it ends has 25 hours
        ("2026-12-31 23:00+00:00", "2027-01-01 08:00+00:00"),
    ],
)
def test_midnight_in_a_zone(now: str, midnight: str) -> None:
    at_s, next_s = (datetime.fromisoformat(text).timestamp() for text in (now, midnight))
    assert next_midnight(at_s, PACIFIC) == next_s
