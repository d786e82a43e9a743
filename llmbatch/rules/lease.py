"""One limit per minute, spent by several processes: each leases a short stretch of it at a time.

All they share is one number for each limit, the theoretical arrival time of the generic cell rate algorithm
(rules/pace.py), here the tail: who leases takes the stretch that begins there and moves the tail to its end. A request
covers as many seconds of it as its amount costs, and goes when the time has come at which its part begins. Who leases
while others hold a stretch gets his behind theirs: hungry processes take turns, and none needs to know of another.
"""

from __future__ import annotations

import math

from llmbatch.rules.pace import MOST_CREDIT_S, TOLERANCE_S

# So much of the rate is leased at once: short enough for others to wait for it, long enough to ask seldom.
LEASE_S = 0.05
# A tail that lies back no further is gone on from, so that late timers cost nothing; else the time was idle, and what
# would be leased of it would be too old at once.
_CATCH_UP_S = TOLERANCE_S / 2
# Float sums of many small steps must not lose the last request of a lease.
_ROUNDING_S = 1e-7


class Lease:
    """What one process holds of one shared limit. Times are seconds of the clock that all share; costs are seconds too.

    Requests (``exact``) have parts that never overlap and are used on time or not at all, so no sliding minute holds
    more than the limit, however many processes spend it. Of tokens nobody knows the number beforehand: a stretch that
    was begun is enough for the next request, whatever it costs, and does not grow old, for else who waits for tokens
    and requests would lose the one while the other comes. What was estimated wrongly is settled with the next lease.
    """

    __slots__ = ("_at_s", "_begin_s", "_end_s", "_exact", "_leased_s", "_owed_s", "_spent_s", "_tail_s")

    def __init__(self, *, exact: bool) -> None:
        self._exact = exact
        self._at_s = self._end_s = 0.0
        # The tail as this process left it: where it still stands, nobody has leased since.
        self._tail_s = -math.inf
        self._begin_s = self._leased_s = self._spent_s = 0.0
        self._owed_s = 0.0  # negative: a credit

    @property
    def end_s(self) -> float:
        """When the stretch that was leased last ends."""
        return self._end_s

    def wait_s(self, now_s: float, cost_s: float) -> float | None:
        """Seconds until so much may go, 0 if it may go now; None if it must be leased first."""
        left_s = self._left_s(now_s)
        if left_s <= _ROUNDING_S or (self._exact and cost_s > left_s + _ROUNDING_S):
            return None
        return max(0.0, self._at_s - now_s)

    def take(self, now_s: float, cost_s: float) -> None:
        """Count what goes at ``now_s``; what the stretch does not hold is owed."""
        left_s = self._left_s(now_s)
        if cost_s > left_s + _ROUNDING_S:
            self._owed_s += cost_s - left_s
        self._at_s = self._end_s - max(0.0, left_s - cost_s)
        self._spent_s += cost_s

    def settle(self, difference_s: float) -> None:
        """So much more than was taken was used, or less if it is negative. A request that was taken stays taken."""
        if difference_s > 0 or not self._exact:
            self._owed_s = max(self._owed_s + difference_s, -MOST_CREDIT_S)

    def renew(self, tail_s: float, now_s: float, cost_s: float) -> float:
        """Lease at least ``cost_s`` (above 0) behind ``tail_s``; the new tail, to be shared at once.

        Who used up his last stretch in less than LEASE_S gets twice as much, up to that; others, what they did use.
        """
        hungry = self._spent_s + cost_s > self._leased_s and now_s < self._begin_s + LEASE_S
        wanted_s = 2 * self._leased_s if hungry else self._spent_s
        span_s = cost_s * max(1, math.ceil(min(wanted_s, LEASE_S) / cost_s - _ROUNDING_S))
        tail_s = self.give_back(tail_s, now_s)
        if tail_s < now_s - _CATCH_UP_S:
            tail_s = now_s
        # A credit begins earlier and moves the tail less, a debt begins later and moves it more.
        shared_s = max(0.0, span_s + self._owed_s)
        self._at_s = max(tail_s + self._owed_s, now_s - _CATCH_UP_S)
        self._begin_s, self._end_s = max(self._at_s, now_s), self._at_s + span_s
        self._owed_s += span_s - shared_s
        self._tail_s = tail_s + shared_s
        self._leased_s, self._spent_s = span_s, 0.0
        return self._tail_s

    def give_back(self, tail_s: float, now_s: float) -> float:
        """The shared tail without what is left of the stretch, of which nothing is left then.

        Once others have leased behind it, their times stand: a gap of requests is lost, tokens become a credit.
        """
        left_s = self._left_s(now_s)
        self._at_s = self._end_s
        if tail_s == self._tail_s:
            return tail_s - left_s
        self.settle(-left_s)
        return tail_s

    def leave(self, tail_s: float, now_s: float) -> float:
        """The shared tail when this process will lease no more: with what is left and what is owed."""
        return self.give_back(tail_s, now_s) + self._owed_s

    def _left_s(self, now_s: float) -> float:
        """What is left of the stretch: of requests, what is older than the tolerance is lost."""
        oldest_s = max(self._at_s, now_s - TOLERANCE_S) if self._exact else self._at_s
        return max(0.0, self._end_s - oldest_s)
