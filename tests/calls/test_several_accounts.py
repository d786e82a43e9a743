"""One limiter before several endpoints and keys, in virtual time: who is asked, and when all are at their end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from scripted import LIMITED, PONG, Answer, Script, always

from llmbatch.calls.lane import Account
from llmbatch.calls.limit import Limiter
from llmbatch.events import DayUsedUp, Event, GateClosed, Notice
from llmbatch.records import CallFailed, Failure, Reply, Request, Stopped, Trace
from llmbatch.rules.quota import Quota
from llmbatch.rules.window import FixedWindow

Virtually = Callable[[Awaitable[Any]], Any]
UNKNOWN = Failure("permanent", "model_not_found", "no such model", http_status=404, fatal=True)
BAD_KEY = Failure("permanent", "invalid_api_key", "bad key", http_status=401, fatal=True)


@dataclass
class Day:
    """So many are left, and some return at a time far off."""

    count: int

    def left(self, now_unix_s: float) -> int:
        return self.count

    def take(self, now_unix_s: float) -> None:
        self.count -= 1

    def returns_at(self, now_unix_s: float) -> float:
        return 4e9


class Bench:
    """A limiter before two accounts, ``a`` and ``b``. Make it inside the loop."""

    def __init__(self, a: Answer, b: Answer, window: int = 2, days: tuple[int, int] | None = None) -> None:
        self.events: list[Event] = []
        self.stopped = False
        self.now = asyncio.get_running_loop().time
        self.a, self.b = Script(a), Script(b)
        accounts = [Account("a", self.a), Account("b", self.b)]
        if days is not None:
            accounts = [replace(account, daily=Day(left)) for account, left in zip(accounts, days, strict=True)]
        self.limiter = Limiter(
            accounts, lambda: FixedWindow(window), self.now, lambda: 0.5, self._heard, Quota(), aside=asyncio.sleep
        )

    def _heard(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, DayUsedUp) and not self.stopped:
            self.stopped = True
            self.limiter.close()  # as the sender does, once

    @property
    def notices(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]

    async def one(self, model: str = "m") -> Reply | Failure | type[Stopped]:
        """A row that asks until it has an answer, or a failure that no other try mends."""
        trace = Trace()
        while True:
            try:
                return await self.limiter(Request(model), trace)
            except CallFailed as failed:
                if not failed.failure.retryable:
                    return failed.failure
            except Stopped:
                return Stopped

    async def all(self, count: int) -> list[Reply | Failure | type[Stopped]]:
        return await asyncio.gather(*(self.one() for _ in range(count)))


# Requests of a day


@pytest.mark.parametrize("days", [(0, 9), (9, 0), (3, 6)])
def test_a_key_without_requests_left_does_not_end_the_run_while_another_is_only_busy(
    virtually: Virtually, days: tuple[int, int]
) -> None:
    async def main() -> None:
        bench = Bench(always(), always(), days=days)
        assert await bench.all(9) == [PONG] * 9
        assert (len(bench.a.sent), len(bench.b.sent)) == days and not bench.events

    virtually(main())


def test_when_no_key_has_a_request_left_that_is_told_and_nobody_waits_on(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(), always(), days=(2, 3))
        outcomes = await bench.all(9)
        assert sorted(outcomes, key=str).count(PONG) == 5 and outcomes.count(Stopped) == 4
        assert [event.returns_unix_s for event in bench.events if isinstance(event, DayUsedUp)] == [pytest.approx(4e9)]
        assert bench.now() <= 3.0, "it stood there for an answer that nobody gives"

    virtually(main())


def test_a_row_that_finds_the_day_used_up_is_stopped_too(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(), always(), days=(0, 0))
        assert await asyncio.wait_for(bench.one(), 5.0) is Stopped

    virtually(main())


# Who is not asked any more


def test_a_model_that_one_row_names_wrongly_costs_the_others_no_endpoint(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(*(lambda sent: (1.0, UNKNOWN if sent.name == "typo" else PONG) for _ in "ab"))
        assert await bench.one("typo") == UNKNOWN
        assert await bench.all(8) == [PONG] * 8
        assert bench.now() == 4.0, "both were asked, two at a time each"
        assert bench.notices == ["a for typo is not asked any more: no such model"]

    virtually(main())


def test_a_key_that_is_refused_is_asked_for_no_model_any_more(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(BAD_KEY), always())
        assert [await bench.one(model) for model in ("m", "n", "o")] == [PONG] * 3
        assert len(bench.a.sent) == 1 and bench.notices == ["a is not asked any more: bad key"]

    virtually(main())


# What is waited for


def test_rows_wait_for_the_one_that_answers_soon_not_for_the_end_of_a_long_pause(virtually: Virtually) -> None:
    async def main() -> None:
        hour = replace(LIMITED, retry_after_s=3600.0)
        bench = Bench(always(hour), always(latency_s=2.0), window=1)
        rows = asyncio.create_task(bench.all(6))
        await asyncio.sleep(5.0)
        assert bench.limiter.waits_for() == "window"
        assert await rows == [PONG] * 6 and len(bench.a.sent) == 1
        assert not any(isinstance(event, GateClosed) for event in bench.events)
        assert bench.notices == ["a asked for a pause of 3,600 s, others are asked: slow down"]

    virtually(main())


def test_a_short_pause_of_one_ends_though_the_other_is_busy_for_long(virtually: Virtually) -> None:
    async def main() -> None:
        pause = replace(LIMITED, retry_after_s=3.0)
        bench = Bench(lambda sent: (1.0, pause if sent.at_s < 1 else PONG), always(latency_s=100.0), window=1)
        await bench.all(3)
        assert bench.a.times_s[:2] == [0.0, 4.0] and len(bench.a.sent) == 3 and bench.now() == 100.0

    virtually(main())
