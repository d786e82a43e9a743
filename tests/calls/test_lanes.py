"""Several lanes in virtual time: endpoints, keys and models, each with limits of its own."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from scripted import BUSY, CUT, LIMITED, PONG, Answer, Script, Sent, always

from llmbatch.calls.lane import Account
from llmbatch.calls.limit import MOST_QUEUES, Limiter
from llmbatch.events import DayUsedUp, Event, GateClosed, Notice
from llmbatch.records import CallFailed, Failure, Reply, Request, Stopped, Trace, Usage
from llmbatch.rules.limits import Allowance, Limits
from llmbatch.rules.pace import Meters, Pace, TokenPace
from llmbatch.rules.quota import Quota
from llmbatch.rules.window import AutoWindow, FixedWindow

Virtually = Callable[[Awaitable[Any]], Any]
NO_KEY = Failure("permanent", "invalid_api_key", "bad key", http_status=401, fatal=True)
NO_MODEL = Failure("permanent", "model_not_found", "no such model", http_status=404, fatal=True)
DOWN = Failure("never_sent", "connect_failed", "nobody there", retryable=True, unreachable=True)


class Day:
    """So many requests, which return after an hour."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.asked = 0

    def left(self, now_unix_s: float) -> int:
        self.asked += 1
        return self.free

    def take(self, now_unix_s: float) -> None:
        self.free -= 1

    def returns_at(self, now_unix_s: float) -> float:
        return now_unix_s + 3600.0


class Bench:
    """A limiter before several scripts, one for each account. Make it inside the loop."""

    def __init__(
        self,
        answers: Mapping[str, Answer],
        window: int | None = 10,
        *,
        most: int | None = None,
        rpm: Mapping[str, float] | None = None,
        days: Mapping[str, int] | None = None,
        aside: Callable[[float], Awaitable[None]] | None = None,
        hear: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.scripts = {name: Script(answer) for name, answer in answers.items()}
        self.events: list[Event] = []
        self.quota = Quota()
        self.now = asyncio.get_running_loop().time
        self.accounts = [
            Account(
                name,
                script,
                Meters({"requests": Pace(rpm[name])} if rpm and name in rpm else None),
                Day(days[name]) if days and name in days else None,
            )
            for name, script in self.scripts.items()
        ]

        def listen(event: Event) -> None:
            self.events.append(event)
            hear(event)

        self.limiter = Limiter(
            self.accounts,
            lambda: AutoWindow(most or 1000) if window is None else FixedWindow(window),
            self.now,
            lambda: 0.5,
            listen,
            self.quota,
            most=most,
            aside=aside,
        )

    async def one(self, name: str = "row", model: str = "m") -> Reply:
        """A row that asks until it is answered. Raises what ends it."""
        trace = Trace()
        while True:
            try:
                return await self.limiter(Request(model, params={"name": name}), trace)
            except CallFailed as failed:
                if not failed.failure.retryable:
                    raise
                await asyncio.sleep(0.0 if failed.failure.concerns_all else 0.1)

    async def all(self, count: int, model: str = "m") -> None:
        assert await asyncio.gather(*(self.one(str(number), model) for number in range(count))) == [PONG] * count

    @property
    def shares(self) -> dict[str, int]:
        return {name: len(script.sent) for name, script in self.scripts.items()}

    @property
    def notices(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]


# Which one is asked


def test_alike_accounts_get_the_same(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"a": always(), "b": always(), "c": always()}, window=4)
        await bench.all(60)
        assert bench.shares == {"a": 20, "b": 20, "c": 20} and bench.now() == 5.0

    virtually(main())


def test_the_quicker_one_gets_more_and_the_slower_one_what_is_left(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"quick": always(latency_s=0.5), "slow": always(latency_s=2.0)}, window=1000, most=50)
        queue = asyncio.Semaphore(50)

        async def row() -> None:
            async with queue:
                await bench.one()

        await asyncio.gather(*(row() for _ in range(2000)))
        quick, slow = bench.shares["quick"], bench.shares["slow"]
        assert 12 <= quick / slow <= 20  # as many times as its speed, squared: least load, and each is over sooner

    virtually(main())


def test_each_has_its_own_limit(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"a": always(), "b": always(), "c": always()}, 1000, rpm={"a": 60, "b": 120, "c": 600})
        rows = asyncio.gather(*(bench.one() for _ in range(1000)))
        await asyncio.sleep(59.9)
        assert {name: round(count, -1) for name, count in bench.shares.items()} == {"a": 60, "b": 120, "c": 600}
        bench.limiter.close()
        await asyncio.gather(rows, return_exceptions=True)

    virtually(main())


def test_the_most_in_flight_is_of_all_together(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"a": always(), "b": always()}, window=10, most=6)
        assert bench.limiter.capacity == 6
        await bench.all(60)
        assert bench.limiter.peak_in_flight == 6 and bench.now() == 10.0 and bench.limiter.in_flight == 0
        assert bench.limiter.capacity == 6

    virtually(main())


# One that fails


@pytest.mark.parametrize("failure", [BUSY, CUT, DOWN], ids=lambda failure: failure.type)
def test_one_that_fails_is_set_aside_and_probed_until_it_is_well(virtually: Virtually, failure: Failure) -> None:
    async def main() -> None:
        bench = Bench({"ill": lambda sent: (0.1, failure if sent.at_s < 100 else PONG), "well": always()}, window=10)
        lasting = [asyncio.create_task(bench.all(2000)) for _ in range(1)]
        await asyncio.sleep(100.0)
        in_between = [at_s for at_s in bench.scripts["ill"].times_s if 10.0 <= at_s < 100.0]
        assert 2 <= len(in_between) <= 8
        assert len([text for text in bench.notices if "ill is set aside" in text]) == 1
        await asyncio.gather(*lasting)
        assert bench.shares["ill"] > 100 and bench.limiter.in_flight == 0

    virtually(main())


def test_a_whole_window_that_fails_at_one_spends_no_quota(virtually: Virtually) -> None:
    """Others answer; what was in flight at the ill one when it was set aside says nothing new."""

    async def main() -> None:
        def hear(event: Event) -> None:
            if isinstance(event, Notice) and "set aside" in event.text:
                bench.quota.tokens = 1  # no retry more

        bench = Bench({"ill": always(CUT, 0.1), "well": always()}, window=50, hear=hear)
        await bench.all(200)
        assert [text for text in bench.notices if "set aside" in text]
        assert not bench.quota.ill and bench.quota.tokens > 0

    virtually(main())


def test_a_pause_that_one_asks_for_is_kept_to_the_millisecond_while_others_go_on(virtually: Virtually) -> None:
    def answer(sent: Sent) -> tuple[float, Reply | Failure]:
        return 1.0, replace(LIMITED, retry_after_s=20.0) if sent.at_s < 1.0 else PONG

    async def main() -> None:
        bench = Bench({"limited": answer, "free": always()}, window=5)
        await bench.all(300)
        later = [at_s for at_s in bench.scripts["limited"].times_s if at_s >= 1.0]
        assert min(later) >= 21.0
        assert len([at_s for at_s in bench.scripts["free"].times_s if 1.0 < at_s < 21.0]) >= 95
        assert not [event for event in bench.events if isinstance(event, GateClosed)], "one is open"

    virtually(main())


def test_a_dead_key_is_asked_no_more_and_its_rows_go_to_the_others(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"dead": always(NO_KEY), "good": always()}, window=10)
        await bench.all(100)
        await bench.all(5, model="another")
        assert bench.shares["dead"] == 10
        assert bench.notices == ["dead is not asked any more: bad key"]
        assert bench.limiter.capacity == 20 and bench.limiter.in_flight == 0

    virtually(main())


def test_when_all_keys_are_dead_the_row_fails(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"a": always(NO_KEY), "b": always(NO_KEY)}, window=1)
        for _ in range(2):
            with pytest.raises(CallFailed) as failed:
                await bench.one()
            assert failed.value.failure.fatal
        assert sum(bench.shares.values()) == 3 and bench.limiter.in_flight == 0

    virtually(main())


def test_a_model_that_one_does_not_have_is_asked_of_the_others_only(virtually: Virtually) -> None:
    async def main() -> None:
        mine = {"a": "m1", "b": "m2"}
        bench = Bench({name: lambda sent, name=name: (1.0, PONG) for name in mine})  # type: ignore[misc]
        for account in bench.accounts:
            script, model = account.call, mine[account.name]

            async def call(request: Request, trace: Trace, script: Any = script, model: str = model) -> Reply:
                reply: Reply = await script(request, trace)
                if request.model != model:
                    trace.attempts[-1].failure = NO_MODEL
                    raise CallFailed(NO_MODEL)
                return reply

            account.call = call
        await asyncio.gather(bench.all(50, "m1"), bench.all(50, "m2"))
        assert sorted(bench.notices) == [
            "a for m2 is not asked any more: no such model",
            "b for m1 is not asked any more: no such model",
        ]
        with pytest.raises(CallFailed):
            await bench.one(model="m3")

    virtually(main())


# The requests of a day


def test_a_day_that_is_used_up_at_one_leaves_the_others(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"a": always(), "b": always()}, window=2, days={"a": 3})
        await bench.all(30)
        assert bench.shares == {"a": 3, "b": 27}
        assert not [event for event in bench.events if isinstance(event, DayUsedUp)], "the other one was only busy"

    virtually(main())


def test_a_day_that_is_used_up_everywhere_is_told_once_however_often_it_is_asked(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"a": always(), "b": always()}, window=2, days={"a": 3, "b": 2})
        rows = [asyncio.create_task(bench.one()) for _ in range(8)]
        for _ in range(100):
            await asyncio.sleep(0.1)
            bench.limiter.waiting()
        told = [event for event in bench.events if isinstance(event, DayUsedUp)]
        assert len(told) == 1 and told[0].returns_unix_s == pytest.approx(time.time() + 3600, abs=60)
        assert bench.limiter.waits_for() == "day" and sum(bench.shares.values()) == 5
        bench.limiter.close()
        await asyncio.gather(*rows, return_exceptions=True)

    virtually(main())


def test_who_stops_the_run_when_the_day_is_used_up_strands_no_row(virtually: Virtually) -> None:
    """The limiter is closed in the midst of admitting."""

    async def main() -> None:
        def hear(event: Event) -> None:
            if isinstance(event, DayUsedUp):
                bench.limiter.close()

        bench = Bench({"a": always()}, days={"a": 1}, hear=hear)
        async with asyncio.timeout(1000):
            assert await bench.one() is PONG
            with pytest.raises(Stopped):
                await bench.one()

    virtually(main())


# Models


def test_each_model_has_a_gate_of_its_own(virtually: Virtually) -> None:
    def answer(sent: Sent) -> tuple[float, Reply | Failure]:
        return 1.0, replace(LIMITED, retry_after_s=30.0) if sent.name == "busy" and sent.at_s < 1 else PONG

    async def main() -> None:
        bench = Bench({"a": answer}, window=5)
        busy = asyncio.create_task(bench.one("busy", model="one"))
        await asyncio.sleep(1.0)
        await bench.all(50, model="two")
        assert bench.now() == 11.0
        await busy
        assert bench.now() == 32.0
        assert list(bench.limiter.lane_statuses()) == ["a one", "a two"]

    virtually(main())


@pytest.mark.parametrize(
    ("limits", "rows", "within_s"),
    [({"window": 10, "most": 2}, 100, 8.0), ({"window": 1000, "rpm": {"a": 60}}, 50, 13.0)],
    ids=["where all wait for the same", "at the pace of their key"],
)
def test_models_take_turns(virtually: Virtually, limits: dict[str, Any], rows: int, within_s: float) -> None:
    async def main() -> None:
        bench = Bench({"a": always()}, **limits)
        first = asyncio.create_task(bench.all(rows, model="one"))
        await asyncio.sleep(0.5)
        await bench.all(5, model="two")
        assert bench.now() <= within_s
        await first

    virtually(main())


def test_a_row_that_rests_beside_a_closed_gate_is_stopped_with_the_others(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"a": lambda sent: (1.0, replace(LIMITED, retry_after_s=50.0))}, aside=asyncio.sleep)
        await asyncio.gather(*(asyncio.wait_for(bench.one(model=name), 1.5) for name in "xy"), return_exceptions=True)
        row = asyncio.create_task(bench.one(model="x"))
        await asyncio.sleep(1.0)
        bench.limiter.close()
        with pytest.raises(Stopped):
            await row
        assert bench.now() < 60.0

    virtually(main())


def test_more_models_than_there_are_queues_share_one(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"a": always()}, window=3)
        await asyncio.gather(*(bench.one(model=str(number)) for number in range(MOST_QUEUES + 20)))
        assert len(list(bench.limiter.lanes)) == MOST_QUEUES and bench.limiter.in_flight == 0
        assert Counter(lane.model for lane in bench.limiter.lanes).most_common(1)[0][1] == 1

    virtually(main())


# What holds up a lane


def test_a_ramp_opens_with_time_though_nobody_answers(virtually: Virtually) -> None:
    """Answers take a minute; after the first one the rest may go within ten seconds, and nothing else wakes them."""

    async def main() -> None:
        bench = Bench({"a": lambda sent: (60.0, PONG) if sent.at_s >= 1.0 else (0.5, DOWN)}, window=64)
        rows = asyncio.create_task(bench.all(64))
        await asyncio.sleep(0.6)
        opened_s = bench.limiter._closed_s(bench.now()) + bench.now()
        await asyncio.sleep(opened_s + 60.0 + 10.5 - bench.now())
        assert bench.limiter.in_flight == 63
        await rows

    virtually(main())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_503_now_and_then_does_not_narrow_the_window(virtually: Virtually, seed: int) -> None:
    async def main() -> None:
        count = seed * 50

        def answer(sent: Sent) -> tuple[float, Reply | Failure]:
            nonlocal count
            count += 1
            return 0.5, BUSY if count % 100 == 0 else PONG

        bench = Bench({"a": answer}, window=None, most=64)
        await asyncio.gather(*(asyncio.create_task(bench.all(150)) for _ in range(40)))
        assert next(bench.limiter.lanes).window.size >= 32

    virtually(main())


def test_a_picture_without_a_word_counts_as_tokens_too(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"a": always(replace(PONG, usage=Usage(600, 400)))}, window=100)
        bench.accounts[0].meters.put("tokens", TokenPace(60_000.0))
        ask = Request("m", body={"n": 1})
        rows = [asyncio.create_task(bench.limiter(ask, Trace())) for _ in range(300)]
        await asyncio.sleep(60.0)
        assert 50 <= len(bench.scripts["a"].sent) <= 80
        bench.limiter.close()
        await asyncio.gather(*rows, return_exceptions=True)

    virtually(main())


def test_a_learnt_limit_paces_its_lane_alone(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"a": always()}, window=100)

        async def call(request: Request, trace: Trace) -> Reply:
            reply = await bench.scripts["a"](request, trace)
            if request.model == "told":
                trace.attempts[-1].limits = Limits(requests=Allowance(60, 59, 1.0))
            return reply

        bench.accounts[0].call = call
        await bench.one(model="told")
        started_s = bench.now()
        await asyncio.gather(bench.all(100, "free"), bench.all(10, "told"))
        assert started_s + 9.0 <= bench.now() <= started_s + 12.0

    virtually(main())


def test_a_request_cancelled_while_it_waits_for_one_of_several_takes_no_place(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"a": always(), "b": always()}, window=1)
        rows = [asyncio.create_task(bench.one()) for _ in range(6)]
        await asyncio.sleep(0.5)
        for row in rows[2:5]:
            row.cancel()
        await asyncio.gather(*rows, return_exceptions=True)
        assert bench.now() == 2.0 and bench.limiter.in_flight == 0
        assert all(lane.in_flight == 0 for lane in bench.limiter.lanes)

    virtually(main())


def test_the_state_of_each_lane_by_name(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench({"a": always(), "b": always(latency_s=9.0)}, window=2)
        rows = asyncio.create_task(bench.all(6))
        await asyncio.sleep(0.5)
        statuses = bench.limiter.lane_statuses()
        assert {name: (one.in_flight, one.allowed, one.binding) for name, one in statuses.items()} == {
            "a": (2, 2, "concurrency"),
            "b": (2, 2, "concurrency"),
        }
        assert bench.limiter.status(0, "idle").allowed == 4
        await rows

    virtually(main())
