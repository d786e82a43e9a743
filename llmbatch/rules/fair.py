"""Whose row goes next? Tenants take turns, row by row, so that none starves the others; each has limits of its own.

A tenant at its limit is passed over until it may go on. Rows without a tenant are one tenant of their own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Any, Generic, Literal, TypeVar

from llmbatch.rules.pace import TOLERANCE_S, Pace
from llmbatch.rules.warmth import PrefixOrder, Warmth

T = TypeVar("T")

# Tenants without rows are forgotten when there are this many, or twice as many as were kept the last time.
MOST_IDLE = 1_000


def tenant_of(fields: Mapping[str, Any], name: str | None) -> str | None:
    """Whose row it is, by the field ``name``: a text or a number. None for nobody's, or if there is no such field."""
    if name is None:
        return None
    said = fields.get(name)
    if type(said) is str:
        return said or None
    return str(said) if type(said) in (int, float) else None


class _Tenant(Generic[T]):
    """``place`` is where it stands: in the queue of turns; paced, full or held back; or without rows."""

    __slots__ = ("name", "order", "pace", "place", "under_way")

    def __init__(self, name: str | None, pace: Pace | None) -> None:
        self.name = name
        self.pace = pace
        self.under_way = 0
        self.order: PrefixOrder[T]
        self.place: Literal["idle", "queue", "paced", "full", "held"] = "idle"


class Turns(Generic[T]):
    """The rows at hand of all tenants. Seconds are of the run's clock; owned by one task's loop.

    ``rpm`` are requests per minute and ``concurrency`` rows under way, of each tenant. A row's further tries are
    counted when it ends; they push the tenant's next rows back.
    """

    def __init__(self, rpm: float | None = None, concurrency: int | None = None) -> None:
        self._rpm = rpm
        self._concurrency = math.inf if concurrency is None else concurrency
        self._warmth = Warmth()
        self._tenants: dict[str | None, _Tenant[T]] = {}
        self._queue: deque[_Tenant[T]] = deque()
        self._paced: list[tuple[float, int, _Tenant[T]]] = []
        self._pushed = 0
        self._full = 0
        self._forget_at = MOST_IDLE
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def limited(self) -> bool:
        """Some tenants with rows were passed over, because of their limits."""
        return bool(self._paced) or self._full > 0

    def add(self, row: T, tenant: str | None, prefix: int | None, now_s: float) -> None:
        """A row that may be sent."""
        one = self._tenants.get(tenant) or self._newcomer(tenant, now_s)
        one.order.add(row, prefix)
        self._count += 1
        if one.place in ("idle", "held"):
            self._enqueue(one)

    def next(self, now_s: float) -> tuple[T, int | None] | None:
        """The row that goes now, and the prefix that it leads, if it does. None if nobody's may."""
        self._warmth.lapse(now_s)
        while self._paced and self._paced[0][0] <= now_s:
            self._enqueue(heappop(self._paced)[2])
        while self._queue:
            one = self._queue.popleft()
            if one.under_way >= self._concurrency:
                one.place = "full"
                self._full += 1
            elif one.pace is not None and (wait_s := one.pace.wait_s(now_s)) > 0:
                self._pause(one, now_s + wait_s)
            elif (found := one.order.next(now_s, one.under_way)) is None:
                one.place = "held"
            else:
                self._sent(one, now_s)
                return found
        return None

    def ended(self, tenant: str | None, tries: int, now_s: float) -> None:
        """A row of ``tenant`` has ended, after so many tries."""
        one = self._tenants.get(tenant)
        if one is None or not one.under_way:
            return  # it went before there was anything to order
        one.under_way -= 1
        if one.pace is not None:
            one.pace.settle(now_s, tries - 1)
        if one.place == "full":
            self._full -= 1
            self._enqueue(one)
        elif self._is_forgettable(one, now_s):
            del self._tenants[tenant]

    def began(self, prefix: int, now_s: float) -> None:
        """The answer to the leader of ``prefix`` begins, or will not come."""
        self._warmth.began(prefix, now_s)

    def wait_s(self, now_s: float) -> float:
        """Seconds until time alone lets another row go; infinite if it does not."""
        paced_s = max(0.0, self._paced[0][0] - now_s) if self._paced else math.inf
        return min(paced_s, self._warmth.wait_s(now_s))

    def _sent(self, one: _Tenant[T], now_s: float) -> None:
        self._count -= 1
        one.under_way += 1
        if one.pace is not None:
            one.pace.take(now_s)
        if one.order:
            self._queue.append(one)
        else:
            one.place = "idle"

    def _enqueue(self, one: _Tenant[T]) -> None:
        one.place = "queue"
        self._queue.append(one)

    def _pause(self, one: _Tenant[T], until_s: float) -> None:
        one.place = "paced"
        self._pushed += 1
        heappush(self._paced, (until_s, self._pushed, one))

    def _newcomer(self, name: str | None, now_s: float) -> _Tenant[T]:
        if len(self._tenants) >= self._forget_at:
            for idle in [one for one in self._tenants.values() if self._is_forgettable(one, now_s)]:
                del self._tenants[idle.name]
            self._forget_at = max(MOST_IDLE, 2 * len(self._tenants))
        one = self._tenants[name] = _Tenant[T](name, None if self._rpm is None else Pace(self._rpm))
        one.order = PrefixOrder(self._warmth, lambda: self._released(one))
        return one

    def _released(self, one: _Tenant[T]) -> None:
        if one.place == "held":
            self._enqueue(one)

    def _is_forgettable(self, one: _Tenant[T], now_s: float) -> bool:
        """Nothing of it is at hand or under way, and its pace owes nothing, catching up included."""
        if one.place != "idle" or one.under_way:
            return False
        return one.pace is None or one.pace.wait_s(now_s - TOLERANCE_S) <= 0
