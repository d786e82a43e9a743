"""What follows from the limits that an answer tells of: a rate, and perhaps a moment of waiting.

Headers are hints: a pessimistic one may slow, a generous one may raise only to what it says, and none of them sets
the rate to nothing or to no limit at all.
"""

from __future__ import annotations

from llmbatch.rules.limits import Allowance, Limits
from llmbatch.rules.pace import KINDS, MINUTE_S, Kind, Meters, Pace, pace_for

# Slower, or quicker, than any limit that a provider has.
SLOWEST_PER_MINUTE, QUICKEST_PER_MINUTE = 1.0, 1e7
MOST_TOKENS_PER_MINUTE = 1e10
# A limit that is whole again only after this is not one of a minute: OpenAI's small tiers and Groq count days there.
LONGEST_MINUTE_S = 90.0
# When less is left than the limit grants in this time, somebody else uses the key too, or our count is wrong.
RESERVE_S = 0.5


def learn(meters: Meters, limits: Limits, now_s: float) -> bool:
    """Set the pace of each limit that was told. True if one of them has changed."""
    changed = False
    for kind in KINDS:
        allowance: Allowance = getattr(limits, kind)
        per_minute = per_minute_of(kind, allowance)
        if per_minute is None:
            continue
        pace = meters.get(kind)
        if not isinstance(pace, Pace):
            pace = pace_for(kind, per_minute)
            meters.put(kind, pace)
            changed = True
        elif pace.per_minute != per_minute:
            pace.change(per_minute)
            changed = True
        if (hold_s := _hold_s(allowance, per_minute)) > 0:
            pace.hold(now_s + hold_s)
    return changed


def per_minute_of(kind: Kind, allowance: Allowance) -> float | None:
    """The rate that a limit allows for long; None if it says none, or counts days: those are used up as they are."""
    limit = allowance.limit
    if limit is None or limit <= 0 or is_daily(allowance):
        return None
    most = QUICKEST_PER_MINUTE if kind == "requests" else MOST_TOKENS_PER_MINUTE
    return min(max(limit * MINUTE_S / allowance.window_s, SLOWEST_PER_MINUTE), most)


def is_daily(allowance: Allowance) -> bool:
    """Whether a limit is one of a day, though it may not be called so."""
    return allowance.window_s > 3600 or (allowance.reset_s is not None and allowance.reset_s > LONGEST_MINUTE_S)


def _hold_s(allowance: Allowance, per_minute: float) -> float:
    """How long to let nothing go, so that there is a reserve again."""
    reserve = per_minute * RESERVE_S / MINUTE_S
    if allowance.remaining is None or allowance.remaining >= min(reserve, 1.0):
        return 0.0
    return max(reserve, 1.0) * MINUTE_S / per_minute
