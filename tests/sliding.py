"""How many of some moments fall into any window of a minute."""

from __future__ import annotations

from collections.abc import Sequence

# Sums of floats: a window counts as a full minute if it is short by less than this.
_ROUNDING_S = 1e-6


def most_in_a_minute(times_s: Sequence[float], amounts: Sequence[float] | None = None) -> float:
    """The largest sum of the ``amounts`` (1 each) at ``times_s`` (sorted) in any window [t, t + 60 s)."""
    counts = [1.0] * len(times_s) if amounts is None else amounts
    most, within, first = 0.0, 0.0, 0
    for last, time_s in enumerate(times_s):
        within += counts[last]
        while time_s - times_s[first] >= 60.0 - _ROUNDING_S:
            within -= counts[first]
            first += 1
        most = max(most, within)
    return most
