"""When does one kind of failure mean that every row will fail? A bad key, no money, an unknown model, nobody there."""

from __future__ import annotations

from llmbatch.records import Failure

# One such answer may be a hiccup of a gateway; three in a row, with no good answer between, are not.
CONFIRMATIONS = 3
# A server that never answered is probably the wrong address: with the gate's pauses this takes some five seconds.
FIRST_TRIES = 4


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
        if not self._answered:
            return strikes >= FIRST_TRIES
        return now_s - self._since_s > max_wait_s
