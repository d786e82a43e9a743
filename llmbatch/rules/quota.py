"""Is another try still worth its load? One purse of retry tokens for all rows of an endpoint, key and model.

botocore's standard retry mode: 500 tokens; a retry costs 5, after a timeout 10; a good answer at the first try gives 1
back, a good retry what it cost (``RetryQuotaChecker`` in ``botocore/retries/standard.py``, ``INITIAL_CAPACITY`` in
``botocore/retries/quota.py``). Noise never empties it: of tries that fail with chance p, 5 p^2 must exceed
(1 - p)^2, so nearly a third must fail for long. botocore then gives the request up; here the row waits at the gate,
and until the purse holds 250 again every good answer gives 1 only: five of them for one retry.
"""

from __future__ import annotations

from collections import deque

from llmbatch.records import Failure

CAPACITY = 500
RETRY_COST = 5
# What may have been billed costs its load and perhaps its price once more.
AMBIGUOUS_COST = 10
FIRST_TRY_GAIN = 1
# An empty purse closes the gate for this long, and then one request at a time tries.
PAUSE_S = 30.0
# So many of the last answers say how ill the server is.
_REMEMBERED = 100


class Quota:
    """The tokens left of 500, or of as many as pay for a lost window of ``in_flight`` requests.

    Shared by the retry layer, which pays, and the limiter, which closes the gate when it can not.
    ``answers`` counts the good ones. ``ill`` from when it ran empty until it holds 250 again, which is told once.
    What concerns all (a rate limit, nobody there) waits at the gate anyway and does not come here.
    """

    __slots__ = ("_capacity", "_failed", "answers", "ill", "tokens")

    def __init__(self, in_flight: int = 1) -> None:
        # A proxy that restarts resets all connections at once; that alone is no illness.
        self._capacity = max(CAPACITY, AMBIGUOUS_COST * in_flight)
        self.tokens = self._capacity
        self.ill = False
        self.answers = 0
        self._failed: deque[bool] = deque(maxlen=_REMEMBERED)

    @property
    def failed_share(self) -> float:
        """Of the last answers, 0 to 1."""
        return sum(self._failed) / len(self._failed) if self._failed else 0.0

    def affords(self, failure: Failure) -> bool:
        """Whether a retry after ``failure`` can be paid."""
        return self.tokens >= _cost(failure)

    def pay(self, failure: Failure) -> int:
        """Take what a retry after ``failure`` costs, and say how much it was. Call it only if it ``affords`` it."""
        self.tokens -= _cost(failure)
        return _cost(failure)

    def failed(self, failure: Failure) -> bool:
        """A try failed that another one may mend. False if no retry can be paid: what is left is lost, too."""
        self._failed.append(True)
        if self.affords(failure):
            return True
        self.tokens = 0
        self.ill = True
        return False

    def answered(self, paid: int) -> None:
        """A good answer came; ``paid`` is what its retry cost, 0 for a first try."""
        self._failed.append(False)
        self.answers += 1
        gain = FIRST_TRY_GAIN if self.ill else paid or FIRST_TRY_GAIN
        self.tokens = min(self._capacity, self.tokens + gain)
        if self.ill and self.tokens >= CAPACITY // 2:
            self.ill = False

    def refund(self, paid: int) -> None:
        """A row failed to the end while others were answered: its own fault, and no sign of an ill server."""
        if not self.ill:
            self.tokens = min(self._capacity, self.tokens + paid)


def _cost(failure: Failure) -> int:
    return AMBIGUOUS_COST if failure.maybe_billed else RETRY_COST
