"""When does one kind of failure mean that every row will fail? A bad key, no money, an unknown model, nobody there.

And when do so many rows fail that it is wiser to ask than to go on?
"""

from __future__ import annotations

from collections import Counter, deque

from llmbatch.options import FailureLimit
from llmbatch.records import Failure
from llmbatch.rules.reasons import excerpt

# One such answer may be a hiccup of a gateway; three in a row, with no good answer between, are not.
CONFIRMATIONS = 3
# A server that never answered is probably the wrong address: with the gate's pauses this takes some five seconds.
FIRST_TRIES = 3
# Twenty different rows that all fail for one permanent reason: it is the command, not the rows.
FIRST_ANSWERS = 20
# A share means something from so many rows on.
ENOUGH_ROWS = 200
# Without --max-failures: more than this share of the last ENOUGH_ROWS.
TOO_MANY = 0.5
_WAYS_ON = "Mend it and run the same command again, or add --max-failures 100% to go on regardless"


class Fuse:
    """Counts fatal failures in a row. Owned by the sender."""

    __slots__ = ("_last", "_streak", "_worked")

    def __init__(self) -> None:
        self._streak = 0
        self._worked = False
        self._last: Failure | None = None

    def good(self) -> None:
        """A good answer: whatever was wrong is not wrong for everybody."""
        self._streak = 0
        self._worked = True

    def blows(self, failure: Failure, *, fresh: bool = True) -> bool:
        """True if the run must stop because of this failure.

        Rows that failed in an earlier run already (not ``fresh``) prove nothing about the others: else the same few
        would stop every run before it comes to the rest.
        """
        self._last = failure
        if not failure.fatal:
            self._worked = True
            return False
        self._streak += fresh
        return self._streak >= CONFIRMATIONS

    def hopeless(self) -> Failure | None:
        """At the end: what all the rows of a short input met, fatal for each of them."""
        return None if self._worked else self._last


class Outage:
    """Nobody there: a restart that is worth waiting for, or the wrong address? Owned by the sender."""

    __slots__ = ("_answered", "_since_s")

    def __init__(self) -> None:
        self._answered = False
        self._since_s: float | None = None

    def answered(self) -> None:
        """Somebody is there, whatever was said."""
        self._answered = True
        self._since_s = None

    def too_long(self, now_s: float, strikes: int, max_wait_s: float) -> bool:
        """The server could not be reached, ``strikes`` times in a row. True if it is time to give up."""
        if self._since_s is None:
            self._since_s = now_s
        if not self._answered and strikes >= FIRST_TRIES:
            return True
        return now_s - self._since_s > max_wait_s


class FailureFuse:
    """Counts the rows that failed, against ``--max-failures`` or, without it, against sense. Owned by the sender."""

    __slots__ = ("_ended", "_failed", "_first", "_last", "_limit", "_sent")

    def __init__(self, limit: FailureLimit | None) -> None:
        self._limit = limit
        self._ended = self._failed = self._sent = 0
        self._first: Failure | None = None  # of the answers so far, if all of them are its like
        self._last: deque[Failure | None] = deque(maxlen=ENOUGH_ROWS)

    def ended(self, failure: Failure | None, *, fresh: bool = True, sent: bool = True) -> str | None:
        """One more row of this run has its result. Says why the run must stop, None if it may go on.

        Without a limit only rows count that were ``sent``, and that no earlier run saw fail (``fresh``): the same few
        would stop every run before it comes to the rest.
        """
        self._ended += 1
        self._failed += failure is not None
        if self._limit is not None:
            return self._over(self._limit)
        return self._senseless(failure) if fresh and sent else None

    def _over(self, limit: FailureLimit) -> str | None:
        rows, share = limit.rows, limit.share
        if rows is not None and self._failed > rows:
            return f"{self._failed:,} of {self._ended:,} rows failed, more than --max-failures {rows:,} allows"
        if share is not None and self._ended >= ENOUGH_ROWS and self._failed > share * self._ended:
            return f"{self._failed:,} of {self._ended:,} rows failed, more than --max-failures {share * 100:g}% allows"
        return None

    def _senseless(self, failure: Failure | None) -> str | None:
        self._sent += 1
        self._last.append(failure)
        if self._sent <= FIRST_ANSWERS and self._all_alike(failure) and self._sent == FIRST_ANSWERS:
            assert failure is not None, "good answers are not alike"
            return f"the first {FIRST_ANSWERS} answers are all the same error, {_named(failure)}. {_WAYS_ON}"
        failures = [failure for failure in self._last if failure is not None] if failure is not None else []
        if len(self._last) < ENOUGH_ROWS or len(failures) <= TOO_MANY * ENOUGH_ROWS:
            return None
        ((word, count),) = Counter(failure.type for failure in failures).most_common(1)
        example = next(failure for failure in reversed(failures) if failure.type == word)
        return f"{len(failures)} of the last {ENOUGH_ROWS} rows failed, {count} with {_named(example)}. {_WAYS_ON}"

    def _all_alike(self, failure: Failure | None) -> bool:
        if self._sent == 1:
            self._first = failure
        first = self._first
        if first is None or failure is None or failure.kind != "permanent" or failure.type != first.type:
            self._first = None
        return self._first is not None


def _named(failure: Failure) -> str:
    status = "" if failure.http_status is None else f" (HTTP {failure.http_status})"
    return f"{excerpt(failure.type, 60)}{status}: {excerpt(failure.message, 200).rstrip('.')}"
