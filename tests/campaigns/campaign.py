"""What all campaigns share: the report of what they did, and a sign of life.

A campaign is a module here with a docstring that says what it does and what it counts, ``LONG_RUNS``, and
``campaign(runs, seed, case=None) -> Report``. One seed is one campaign; ``case`` keeps only the cases with that word
in their name. ``tests/campaigns/test_NAME.py`` holds its short form: the same function with fewer runs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field


@dataclass
class Report:
    """``runs`` made, what was ``counted``, and every promise found ``broken``.

    A line of ``broken`` says what happened and ends with the command that shows it again
    (``python tests/campaigns kill --seed 7 --runs 12``).
    """

    runs: int = 0
    counted: dict[str, int | float | str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def count(self, what: str, by: int = 1) -> None:
        """Add to a sum."""
        self.counted[what] = int(self.counted.get(what, 0)) + by

    def most(self, what: str, value: int) -> None:
        """Keep the largest value seen."""
        self.counted[what] = max(int(self.counted.get(what, 0)), value)


def progress(done: int, of: int, every: int = 50) -> None:
    """For the person who waits."""
    if done % every == 0:
        print(f"  {done:,}/{of:,}", file=sys.stderr, flush=True)
