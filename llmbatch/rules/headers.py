"""What did the response headers say about waiting? Parsed strictly: garbage says nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# ASCII only: int() and float() also take "1_000", "nan", "inf" and digits of other scripts.
_SECONDS = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,9})?", re.ASCII)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asked to wait, the largest of all it said; None if it said nothing usable.

    Reads ``retry-after-ms`` and ``retry-after`` (seconds, or an HTTP date, which is measured against the
    response's own ``Date``, so that a wrong clock on either side does no harm). Zero, the past and garbage
    are None: the ordinary backoff applies.
    """
    found = [ms / 1000 for value in _all(headers, "retry-after-ms") if (ms := _number(value)) is not None]
    for value in _all(headers, "retry-after"):
        seconds = _number(value)
        if seconds is None:
            seconds = _until(value, headers.get("date"))
        if seconds is not None:
            found.append(seconds)
    longest = max(found, default=0.0)
    return longest if longest > 0 else None


def _all(headers: Mapping[str, str], name: str) -> Iterable[str]:
    """Every value of a header, sent several times (a multidict) or once."""
    getall = getattr(headers, "getall", None)
    if getall is not None:
        values: Iterable[str] = getall(name, ())
        return values
    value = headers.get(name)
    return () if value is None else (value,)


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if _SECONDS.fullmatch(text) else None


def _until(text: str, date: str | None) -> float | None:
    then, now = _http_date(text), _http_date(date or "")
    return None if then is None or now is None else (then - now).total_seconds()


def _http_date(text: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
