"""What follows from the limits that an answer tells of: a rate, and perhaps a moment of waiting.

Headers are hints: a pessimistic one may slow, a generous one may raise only to what it says, and none of them sets
the rate to nothing or to no limit at all. What contradicts itself, as more left than there is, is not believed.
"""

from __future__ import annotations

from llmbatch.rules.limits import Allowance, Limits
from llmbatch.rules.pace import KINDS, MINUTE_S, Kind, Meters, Pace, pace_for

# Slower, or quicker, than any limit that a provider has.
SLOWEST_PER_MINUTE, QUICKEST_PER_MINUTE = 1.0, 1e7
MOST_TOKENS_PER_MINUTE = 1e10
# A limit that is whole again only after this is not one of a minute: OpenAI's small tiers and Groq count days there.
LONGEST_MINUTE_S = 90.0
# When nothing is left, somebody else uses the key too, or our count is wrong: so much of the limit is waited for, or
# one request.
RESERVE_S = 0.5


def learn(meters: Meters, limits: Limits, now_s: float) -> None:
    """Set the pace of each limit that was told."""
    for kind in KINDS:
        allowance: Allowance = getattr(limits, kind)
        per_minute = per_minute_of(kind, allowance)
        if per_minute is None:
            continue
        pace = meters.get(kind)
        if not isinstance(pace, Pace):
            pace = pace_for(kind, per_minute)
            meters.put(kind, pace)
        elif pace.per_minute != per_minute:
            pace.change(per_minute)
        if allowance.remaining == 0:
            pace.hold(now_s + max(RESERVE_S, MINUTE_S / per_minute))


def per_minute_of(kind: Kind, allowance: Allowance) -> float | None:
    """The rate that a limit allows for long; None if it says none, or counts days: those are used up as they are."""
    limit = allowance.limit
    if limit is None or limit <= 0 or is_daily(allowance) or (allowance.remaining or 0) > limit:
        return None
    most = QUICKEST_PER_MINUTE if kind == "requests" else MOST_TOKENS_PER_MINUTE
    return min(max(limit * MINUTE_S / allowance.window_s, SLOWEST_PER_MINUTE), most)


def is_daily(allowance: Allowance) -> bool:
    """Whether a limit is one of a day, though it may not be called so."""
    return allowance.window_s > 3600 or (allowance.reset_s is not None and allowance.reset_s > LONGEST_MINUTE_S)
