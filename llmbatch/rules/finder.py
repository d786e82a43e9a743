"""What rate does a server allow that only says it by refusing?

A server's bucket is empty whenever it refuses. So what it let in between two refusals, divided by the time between
them, is its limit, whatever was sent and however large the bucket is (as long as it did not overflow meanwhile; then
the limit is higher, and growth finds it). After a refusal the rate stays just below that for a while, then grows,
slowly at first (as CUBIC does, RFC 9438, and botocore's ``throttling.py``, which both lack the measurement and so must
cut deeper): a doubled limit is found within twenty seconds, an unchanged one refuses about one request in a hundred.

Some servers refuse now and then whatever the rate is. Their refusals come while the rate stands still, too, and alone;
then only several close together count. So it is at a high rate, always: there noise comes before the rate has grown,
and each refusal on its own would hold it down, while of a rate that is too high several follow at once.
"""

from __future__ import annotations

from collections import deque

from llmbatch.meters import RecentRate

# Just below what was measured, so that the server's bucket gains a little.
SAFE_SHARE = 0.97
# The first refusal comes from a server whose bucket was full: what was let in so far says little.
FIRST_SHARE = 0.5
# The first refusal says nothing of a rate before so many requests were let in.
ENOUGH = 20
# Refusals closer than this are one event: answers to what was sent together.
EVENT_S = 0.9
# The rate stands still for so long after a refusal, and has doubled so long after that.
HOLD_S, DOUBLE_S = 5.0, 9.0
# While two measurements in a row differ.
UNSURE_HOLD_S, UNSURE_DOUBLE_S = 0.5, 5.0
SURE_PAUSE_S, UNSURE_PAUSE_S, FIRST_PAUSE_S = 0.25, 0.5, 1.0
# Slower servers are asked in proportion: it is the number of requests that a refusal is weighed against.
FULL_SPEED_PER_S = 5.0
# Two measurements that differ by less than this are one.
SAME = 0.1
# Refusals that come while the rate stands still, and are fewer than so many of so many requests, are noise; a server
# that makes some is only believed when they are as many.
TOGETHER, AMONG = 3, 40
NOISES = 2
# From this rate on fewer than so many of them say nothing, nor do those of the first few requests after an event.
QUICK_PER_S, QUICK_TOGETHER, QUICK_LEAST = 30.0, 4, 10
SETTLED_S = 2.0
# A rate that has grown so far before it was refused is no longer about the old limit.
FAR, FAR_SHARE = 1.7, 0.65
# What was let in over so long is the measurement. A bucket left alone for longer is full.
MEMORY_S = 60.0
_LATELY_S = 5.0
_LOOK_S = 0.25


class RateFinder:
    """Finds the rate of one endpoint, key and model. Owned by its lane; times are of the run's clock."""

    __slots__ = (
        "_base_per_s",
        "_grown_s",
        "_looked_s",
        "_marks",
        "_noises",
        "_proven_per_s",
        "_rate",
        "_refusals",
        "_refused",
        "_sent",
        "_sent_at_look",
        "_sent_at_mark",
        "_sent_s",
        "_sure",
    )

    def __init__(self, now_s: float) -> None:
        self._sent = self._refused = 0
        self._rate = RecentRate(now_s)
        self._base_per_s: float | None = None
        # When the server refused, and how many it had let in until then.
        self._marks: deque[tuple[float, int]] = deque()
        self._proven_per_s: float | None = None
        # At which of the requests the last refusals came.
        self._refusals: deque[int] = deque(maxlen=QUICK_TOGETHER)
        self._noises = 0
        self._sure = False
        self._grown_s = 0.0
        self._looked_s = now_s
        self._sent_at_look = self._sent_at_mark = 0
        self._sent_s = now_s

    @property
    def found(self) -> bool:
        """Whether the server has ever refused."""
        return self._base_per_s is not None

    def sent(self, now_s: float) -> None:
        """One more request left."""
        self._sent += 1
        if self._base_per_s is None:
            self._rate.add(now_s)
        elif now_s - self._sent_s > MEMORY_S:
            self._marks.clear()
        self._sent_s = now_s

    def answered(self, sent_s: float) -> None:
        """What was sent at ``sent_s`` was let in: the server is well, and its refusals are of the rate."""
        if self._marks and sent_s > self._marks[-1][0]:
            self._proven_per_s = self._base_per_s

    def storm(self) -> None:
        """The server refuses everything: what the refusals since its last answer said of the rate is not true."""
        self._base_per_s = self._proven_per_s
        self._marks.clear()
        self._sure = False

    def refused(self, now_s: float, known_per_s: float | None = None) -> float | None:
        """A request was refused because too many came. Gives the seconds for which nothing should be sent.

        None: too few were let in to say anything of a rate. ``known_per_s`` is that by which all were sent, if there
        is one.
        """
        self._refused += 1
        self._refusals.append(self._sent)
        if self._base_per_s is None and known_per_s is None and self._sent - self._refused < ENOUGH:
            return None
        if self._base_per_s is None:
            # Where answers take long, what is refused now was sent long ago.
            lately_per_s = max(self._rate.per_s(now_s, _LATELY_S), self._rate.per_s(now_s, MEMORY_S), 0.1)
            if self._means_nothing(lately_per_s):
                return 0.0
            self._base_per_s = FIRST_SHARE * lately_per_s if known_per_s is None else min(lately_per_s, known_per_s)
            self._mark(now_s)
            return FIRST_PAUSE_S
        if self._means_nothing(self._at(self._grown_s)):
            return 0.0
        if not self._marks:
            self._mark(now_s)
        elif now_s - self._marks[-1][0] < EVENT_S:
            pass
        elif self._is_noise(now_s):
            return 0.0
        else:
            self._measure(now_s)
        return SURE_PAUSE_S if self._sure else UNSURE_PAUSE_S

    def per_s(self, now_s: float) -> float | None:
        """Requests per second that may be sent now; None while nothing was refused."""
        if self._base_per_s is None:
            return None
        if now_s - self._looked_s >= _LOOK_S:
            self._grow(now_s)
        return self._at(self._grown_s)

    def _grow(self, now_s: float) -> None:
        """A rate that is not used proves nothing, and does not grow."""
        since_s, sent = now_s - self._looked_s, self._sent - self._sent_at_look
        least = 0.7 * since_s * self._at(self._grown_s) - 1
        if sent == 0 and least <= 0:
            return  # too early to say
        if sent >= least:
            self._grown_s += since_s * min(1.0, self._base() / FULL_SPEED_PER_S)
        self._looked_s, self._sent_at_look = now_s, self._sent

    def _means_nothing(self, per_s: float) -> bool:
        """Whether a refusal at this rate is one of too few, or of too few requests."""
        few = self._sent - self._sent_at_mark < QUICK_LEAST
        return per_s >= QUICK_PER_S and (few or not self._together(QUICK_TOGETHER))

    def _together(self, count: int) -> bool:
        """Whether the last ``count`` refusals were close together."""
        return len(self._refusals) >= count and self._sent - self._refusals[-count] < AMONG

    def _is_noise(self, now_s: float) -> bool:
        """Whether a refusal is none of the rate. Just after another one the server's bucket is still empty."""
        if self._together(TOGETHER):
            self._noises = 0
            return False
        standing = self._at(self._grown_s) <= self._base()
        if standing and now_s - self._marks[-1][0] >= SETTLED_S:
            self._noises += 1
            return True
        noisy = self._noises >= NOISES
        if not standing:
            self._noises = max(0, self._noises - 1)
        return noisy

    def _base(self) -> float:
        assert self._base_per_s is not None, "asked for once there is one"
        return self._base_per_s

    def _at(self, grown_s: float) -> float:
        hold_s, double_s = (HOLD_S, DOUBLE_S) if self._sure else (UNSURE_HOLD_S, UNSURE_DOUBLE_S)
        return self._base() * (SAFE_SHARE + (max(0.0, grown_s - hold_s) / double_s) ** 4)

    def _measure(self, now_s: float) -> None:
        """The server's bucket was empty then, and is now."""
        then_s, then = self._marks[-1]
        let_in = self._sent - self._refused
        latest = max(let_in - then, 1) / (now_s - then_s)
        while self._marks[0][0] < now_s - MEMORY_S and len(self._marks) > 1:
            self._marks.popleft()
        first_s, first = self._marks[0]
        overall = max(let_in - first, 1) / (now_s - first_s)
        base, grown = self._base(), self._at(self._grown_s)
        self._sure = abs(latest - base) <= SAME * base
        if grown > FAR * base:
            # The limit has risen: the bucket may have overflowed, and the rate at which it ran empty says more.
            self._marks.clear()
            self._base_per_s = max(latest, FAR_SHARE * grown)
            self._sure = False
        elif abs(latest - overall) > 2 * SAME * overall:
            self._marks.clear()
            self._base_per_s = latest
        else:
            self._base_per_s = overall
        self._mark(now_s)

    def _mark(self, now_s: float) -> None:
        self._marks.append((now_s, self._sent - self._refused))
        self._grown_s = 0.0
        self._sent_at_mark = self._sent
        self._looked_s, self._sent_at_look = now_s, self._sent
