"""The limiter, steered while it runs, in virtual time: paused, resumed, with other limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from scripted import PONG, Script, always

from llmbatch.calls.lane import Account
from llmbatch.calls.limit import Limiter
from llmbatch.records import Reply, Request, Stopped, Trace
from llmbatch.rules.pace import Meters, Pace
from llmbatch.rules.quota import Quota
from llmbatch.rules.window import FixedWindow

Virtually = Callable[[Awaitable[Any]], Any]


class Bench:
    """A limiter around a script that answers after ``latency_s``. Make it inside the loop."""

    def __init__(self, window: int, rpm: float | None = None, latency_s: float = 1.0) -> None:
        self.script = Script(always(latency_s=latency_s))
        self.now = asyncio.get_running_loop().time
        meters = Meters() if rpm is None else Meters({"requests": Pace(rpm)})
        self.account = Account("here", self.script, meters)
        self.limiter = Limiter(
            [self.account], lambda: FixedWindow(window), self.now, lambda: 0.5, lambda event: None, Quota()
        )

    def start(self, count: int) -> list[asyncio.Task[Reply]]:
        return [asyncio.create_task(self.limiter(Request("m"), Trace())) for _ in range(count)]  # type: ignore[arg-type]

    def set(self, window: int, rpm: float | None) -> None:
        pace = None if rpm is None else Pace(rpm)
        if pace is not None:
            pace.take(self.now())
        self.account.meters.put("requests", pace)
        self.limiter.set_window(lambda: FixedWindow(window), None)


def test_paused_sends_nothing_new_and_what_is_in_flight_goes_on(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(window=2)
        rows = bench.start(6)
        await asyncio.sleep(0.5)
        bench.limiter.pause()
        await asyncio.sleep(100)
        assert [row.done() for row in rows] == [True] * 2 + [False] * 4
        assert len(bench.script.sent) == 2
        bench.limiter.resume()
        assert await asyncio.gather(*rows) == [PONG] * 6
        assert bench.script.times_s == [0, 0, 100.5, 100.5, 101.5, 101.5]

    virtually(main())


def test_who_comes_while_it_is_paused_waits_too(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(window=2)
        bench.limiter.pause()
        rows = bench.start(1)
        await asyncio.sleep(10)
        assert bench.script.sent == []
        bench.limiter.resume()
        assert await rows[0] is PONG

    virtually(main())


def test_a_pause_in_the_middle_of_a_pace_is_kept_by_no_timer(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(window=100, rpm=60)
        rows = bench.start(5)
        await asyncio.sleep(1.5)
        bench.limiter.pause()
        await asyncio.sleep(30)
        assert len(bench.script.sent) == 2
        bench.limiter.resume()
        await asyncio.gather(*rows)
        assert bench.script.times_s[2] == 31.5
        assert bench.script.times_s[4] >= 33.4  # paced as before

    virtually(main())


def test_what_waits_in_a_pause_is_stopped_by_a_drain(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(window=1)
        rows = bench.start(3)
        await asyncio.sleep(0.5)
        bench.limiter.pause()
        bench.limiter.close()
        outcomes = await asyncio.gather(*rows, return_exceptions=True)
        assert outcomes[0] is PONG
        assert [type(outcome) for outcome in outcomes[1:]] == [Stopped, Stopped]

    virtually(main())


def test_the_display_says_that_it_is_paused(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(window=1)
        rows = bench.start(2)
        await asyncio.sleep(0.5)
        said = []
        for steer in (lambda: None, bench.limiter.pause, bench.limiter.resume):
            steer()
            said.append((bench.limiter.status(0, "idle").paused, bench.limiter.waiting().waits_for))
        assert said == [(False, "window"), (True, "paused"), (False, "window")]
        await asyncio.gather(*rows)

    virtually(main())


def test_a_wider_window_is_used_at_once_and_a_narrower_one_as_answers_come(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(window=1)
        rows = bench.start(30)
        await asyncio.sleep(0.5)
        bench.set(10, None)
        assert bench.limiter.in_flight == 10
        bench.set(2, None)
        assert bench.limiter.in_flight == 10
        await asyncio.sleep(1.1)
        assert bench.limiter.in_flight == 2
        await asyncio.gather(*rows)

    virtually(main())


def test_another_pace_holds_from_its_moment_on_in_both_directions(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(window=1000, rpm=6)
        rows = bench.start(400)
        await asyncio.sleep(1)
        bench.set(1000, 600)  # the timer for the old pace would wake 9 s later
        await asyncio.sleep(10)
        assert 95 <= len(bench.script.sent) <= 102
        bench.set(1000, 6)
        sent = len(bench.script.sent)
        await asyncio.sleep(59)
        assert 5 <= len(bench.script.sent) - sent <= 6
        bench.set(1000, None)
        await asyncio.gather(*rows)
        assert bench.now() < 72

    virtually(main())
