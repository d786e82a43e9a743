"""When does one kind of failure mean that every row will fail? A bad key, no money, an unknown model."""

from __future__ import annotations

from llmbatch.records import Failure

# One such answer may be a hiccup of a gateway; three in a row, with no good answer between, are not.
CONFIRMATIONS = 3


class Fuse:
    """Counts fatal failures in a row. Owned by the runner."""

    __slots__ = ("_streak",)

    def __init__(self) -> None:
        self._streak = 0

    def good(self) -> None:
        """A good answer: whatever was wrong is not wrong for everybody."""
        self._streak = 0

    def blows(self, failure: Failure) -> bool:
        """True if the run must stop because of this failure."""
        if not failure.fatal:
            return False
        self._streak += 1
        return self._streak >= CONFIRMATIONS
