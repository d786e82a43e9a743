"""Requests in any 24 hours, counted by hours of the wall clock, and when a spent quota returns.

An hour is named by its number since 1970. A request counts from its hour until 24 full hours have passed after it, so
a count may be up to an hour too high and is never too low.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta, tzinfo

HOUR_S = 3600
_HOURS = 24
# Further off, a date says nothing, and may be garbage from a server.
YEAR_S = 366 * 86_400


def hour_of(now_unix_s: float) -> int:
    """The number of the hour at that Unix time."""
    return int(now_unix_s // HOUR_S)


def counted(hours: Mapping[int, int], hour: int) -> dict[int, int]:
    """What still counts in ``hour``. Hours to come do, too: the clock may have been set back by a few."""
    return {at: count for at, count in hours.items() if count > 0 and abs(hour - at) <= _HOURS}


def returns_at(hours: Mapping[int, int], per_day: int, now_unix_s: float) -> float:
    """The Unix time from which at least one request is free; ``now_unix_s`` if there is one."""
    hours = counted(hours, hour_of(now_unix_s))
    over = sum(hours.values()) - per_day
    at_s = now_unix_s
    for hour in sorted(hours):
        if over < 0:
            break
        over -= hours[hour]
        at_s = float((hour + _HOURS + 1) * HOUR_S)
    return at_s


def next_midnight(now_unix_s: float, zone: tzinfo) -> float:
    """The Unix time at which the day after this one begins in ``zone``."""
    today = datetime.fromtimestamp(now_unix_s, zone)
    return (datetime(today.year, today.month, today.day, tzinfo=zone) + timedelta(days=1)).timestamp()


def reset_words(until_unix_s: float, now_unix_s: float, zone: tzinfo) -> str:
    """When a quota returns: ``at 2026-11-22 09:00+01:00 (in 7 h 12 min)``, rounded up to the minute.

    ``zone`` is the one in which the user thinks: ``datetime.fromtimestamp(until_unix_s).astimezone().tzinfo``.
    """
    left_s = until_unix_s - now_unix_s
    if left_s <= 0:
        return "now"
    if left_s > YEAR_S:
        return "in more than a year"
    at = datetime.fromtimestamp(math.ceil(until_unix_s / 60) * 60, zone)
    return f"at {at.isoformat(' ', 'minutes')} (in {_span(left_s)})"


def _span(seconds: float) -> str:
    if seconds <= 59:
        return f"{math.ceil(seconds)} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    if hours == 0:
        return f"{minutes} min"
    return f"{hours} h {minutes:02} min" if hours < 100 else f"{round(hours / 24)} days"
