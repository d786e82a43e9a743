"""When is a request so slow that it is asked a second time, and may it be?

Hedged requests (Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013): what has not been answered when 95 % of the
others would have been is sent once more, and the first answer counts. That is 5 % more requests by definition, most
of them for answers that were about to come. So there is a budget, and where it runs short the wait grows towards the
99th percentile: it is kept for the real stragglers.
"""

from __future__ import annotations

import math

from llmbatch.meters import Histogram

# In points: a request gives 1, a second one costs 20. That is 5 %.
COST = 20
# Five may be sent before 5 % of anything is that many; the first hundred requests pay for them.
AT_START = 5 * COST
# What is not used does not add up for ever: a server that is suddenly slow must not get all of it at once.
MOST_SAVED = 40 * COST
# Of the rows under way, at most this share is asked twice at one time; a server that stands still is left alone.
SHARE_AT_ONCE = 0.1
# With fewer answers than this a 95th percentile is noise.
ENOUGH = 50
# Percentiles are of the last 1,000 to 2,000 answers: a server that has become slower is soon no straggler.
MEMORY = 1_000
# Percentiles are taken anew after this many answers.
_FRESH = 50
_PERCENTILES = (95, 96, 97, 98, 99)


class Hedging:
    """What is slow, by ``after_s`` seconds or else by the measured 95th percentile; and the budget. Owned by one run.

    Of n requests begun, at most n / 20 are sent a second time, or 5 if that is more.
    """

    __slots__ = ("_after_s", "_answers", "_before", "_begun", "_latest", "_levels_s", "_measure_at", "_points")

    def __init__(self, after_s: float | None = None) -> None:
        self._after_s = after_s
        self._begun = 0
        self._points = AT_START
        self._answers = 0
        self._measure_at = ENOUGH
        self._before, self._latest = Histogram(), Histogram()
        self._levels_s: tuple[float, ...] | None = None

    def begun(self) -> None:
        """A request is on its way, not counting second ones."""
        self._begun += 1
        if self._begun > AT_START and self._points < MOST_SAVED:
            self._points += 1

    def answered(self, seconds: float) -> None:
        """How long a first request took until its good answer, or its first token; or until it was given up.

        Those given up must count: without them each percentile would be one of the others, and sink for ever.
        """
        self._answers += 1
        self._latest.add(seconds)
        if self._latest.count >= MEMORY:
            self._before, self._latest = self._latest, Histogram()

    @property
    def threshold_s(self) -> float:
        """Seconds after which a request is slow; infinite while nobody can say."""
        if self._answers >= self._measure_at:
            self._measure()
        short = 1.0 - 2.0 * self._points / MOST_SAVED
        if self._levels_s is None:
            return math.inf if self._after_s is None else self._after_s
        if short <= 0.0:
            return self._levels_s[0] if self._after_s is None else self._after_s
        return max(self._levels_s[int(short * (len(_PERCENTILES) - 1) + 0.5)], self._after_s or 0.0)

    def room(self, rows: int, twice: int) -> bool:
        """Whether one more may be sent, with ``rows`` under way of which ``twice`` are asked twice already."""
        return self._points >= COST and twice < max(1.0, rows * SHARE_AT_ONCE)

    def take(self) -> bool:
        """Pay for a second request, if there is enough."""
        if self._points < COST:
            return False
        self._points -= COST
        return True

    def give_back(self) -> None:
        """A second request was paid for and not sent."""
        self._points += COST

    def _measure(self) -> None:
        self._measure_at = self._answers + _FRESH
        recent = self._before.joined(self._latest)
        self._levels_s = tuple(recent.percentile(percent) for percent in _PERCENTILES)
