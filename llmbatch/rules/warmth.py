"""Which rows of those at hand go next, so that the provider finds the beginnings of their prompts in its cache?

A cache holds a prefix once the first answer to it has begun, and forgets it minutes after its last use. So the first
row of a prefix goes alone, as its leader, and the others follow together once its answer begins; meanwhile rows with
other prefixes, or without one, go on.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# Anthropic guide "Prompt caching": five minutes since the last use; OpenAI's and vLLM's are no shorter.
WARM_S = 300.0
# A prompt is read long before: who has not begun to answer by then is queued, rests between tries, or is ill.
LEAD_S = 20.0
# Prefixes that are remembered; of rows that all begin differently there would be ever more.
MOST_WARM = 10_000


class Warmth:
    """What is known of the provider's cache. Seconds are of the run's clock. Owned by one task's loop."""

    __slots__ = ("_leads", "_warm")

    def __init__(self) -> None:
        # In the order of their ends: each lasts equally long.
        self._leads: OrderedDict[int, tuple[float, list[Callable[[int], None]]]] = OrderedDict()
        self._warm: OrderedDict[int, float] = OrderedDict()

    def is_led(self, prefix: int) -> bool:
        """A leader is on its way, and its answer has not begun."""
        return prefix in self._leads

    def is_warm(self, prefix: int, now_s: float) -> bool:
        """It is probably in the cache."""
        used_s = self._warm.get(prefix)
        return used_s is not None and now_s - used_s < WARM_S

    def lead(self, prefix: int, now_s: float) -> None:
        """A leader goes."""
        self._leads[prefix] = now_s + LEAD_S, []

    def follow(self, prefix: int, released: Callable[[int], None]) -> None:
        """Call ``released`` with the prefix once its leader need not be waited for any more."""
        self._leads[prefix][1].append(released)

    def used(self, prefix: int, now_s: float) -> None:
        """A row with it goes."""
        self._warm[prefix] = now_s
        self._warm.move_to_end(prefix)
        if len(self._warm) > MOST_WARM:
            self._warm.popitem(last=False)

    def began(self, prefix: int, now_s: float) -> None:
        """The leader's answer begins, or there will be none. Told twice, or too late, it does nothing."""
        lead = self._leads.pop(prefix, None)
        if lead is not None:
            self.used(prefix, now_s)
            for released in lead[1]:
                released(prefix)

    def lapse(self, now_s: float) -> None:
        """Give up waiting for leaders that take too long."""
        while self._leads:
            prefix, (until_s, _) = next(iter(self._leads.items()))
            if until_s > now_s:
                return
            self.began(prefix, now_s)

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next leader has taken too long; infinite if there is none."""
        return next((max(0.0, until_s - now_s) for until_s, _ in self._leads.values()), math.inf)


class PrefixOrder(Generic[T]):
    """Rows that wait to be sent, grouped by prefix; those without one are a group as well, in their own order.

    Groups take turns: all rows that the group has when its turn comes, or one row without a prefix. A group's first
    row leads. Leaders go early, out of turn, while fewer rows could follow at once than are under way: so the rows of
    one prefix after the other go on without a pause between them. ``released`` is called when rows that were held back
    may go.
    """

    def __init__(self, warmth: Warmth, released: Callable[[], None]) -> None:
        self._warmth = warmth
        self._released = released
        self._rows: dict[int | None, deque[T]] = {}
        # Groups with the number of their turn: those whose rows may go, and those that want a leader. All other groups
        # wait for theirs.
        self._open: OrderedDict[int | None, int] = OrderedDict()
        self._cold: OrderedDict[int | None, int] = OrderedDict()
        self._open_rows = 0
        self._last = self._first = 0
        self._current: int | None = None
        self._left = 0  # rows of the current turn
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, row: T, prefix: int | None) -> None:
        """One more row."""
        self._count += 1
        rows = self._rows.get(prefix)
        if rows is not None:
            rows.append(row)
            self._open_rows += prefix in self._open
            return
        self._rows[prefix] = deque((row,))
        self._last += 1
        (self._open if prefix is None else self._cold)[prefix] = self._last
        self._open_rows += prefix is None

    def next(self, now_s: float, under_way: int) -> tuple[T, int | None] | None:
        """The row that goes now, and the prefix that it leads, if it does. None if all wait for their leaders.

        ``under_way`` is how many were sent and have not ended.
        """
        while self._open or self._cold:
            prefix = self._whose_turn(under_way)
            if prefix is None or prefix in self._open:
                if prefix is None or self._warmth.is_warm(prefix, now_s):
                    return self._follower(prefix, now_s), None
                self._cool(prefix)
            elif self._warmth.is_led(prefix):  # by a row of somebody else's
                del self._cold[prefix]
                self._warmth.follow(prefix, self._release)
            elif self._warmth.is_warm(prefix, now_s):
                del self._cold[prefix]
                self._open_first(prefix)
            else:
                return self._leader(prefix, now_s), prefix
        return None

    def _whose_turn(self, under_way: int) -> int | None:
        if self._cold and self._open_rows < max(under_way, 1):
            return next(iter(self._cold))
        if self._left and self._current in self._open:
            return self._current
        cold, found = next(iter(self._cold.items()), None), next(iter(self._open.items()), None)
        if found is None or (cold is not None and cold[1] < found[1]):
            assert cold is not None, "one of them has a group"
            return cold[0]
        self._current, self._left = found[0], 1 if found[0] is None else len(self._rows[found[0]])
        return found[0]

    def _follower(self, prefix: int | None, now_s: float) -> T:
        if prefix is not None:
            self._warmth.used(prefix, now_s)
        self._open_rows -= 1
        self._left -= 1
        row = self._popped(prefix)
        if prefix not in self._rows:
            del self._open[prefix]
        elif not self._left:
            self._last += 1
            self._open[prefix] = self._last
            self._open.move_to_end(prefix)
        return row

    def _leader(self, prefix: int, now_s: float) -> T:
        del self._cold[prefix]
        self._warmth.lead(prefix, now_s)
        row = self._popped(prefix)
        if prefix in self._rows:
            self._warmth.follow(prefix, self._release)
        return row

    def _popped(self, prefix: int | None) -> T:
        self._count -= 1
        rows = self._rows[prefix]
        row = rows.popleft()
        if not rows:
            del self._rows[prefix]
        return row

    def _cool(self, prefix: int) -> None:
        """It was not used for too long: a leader is wanted again."""
        self._cold[prefix] = self._open.pop(prefix)
        self._open_rows -= len(self._rows[prefix])

    def _release(self, prefix: int) -> None:
        self._open_first(prefix)
        self._released()

    def _open_first(self, prefix: int) -> None:
        """What has just been cached is used next."""
        self._first -= 1
        self._open[prefix] = self._first
        self._open.move_to_end(prefix, last=False)
        self._open_rows += len(self._rows[prefix])
