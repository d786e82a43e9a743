"""The one gate before the wire, in virtual time: slots, pace, and the pause after rate-limit answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from scripted import BAD, BUSY, LIMITED, PONG, Answer, Script, Sent, always

from llmbatch.calls.lane import Account, Lane
from llmbatch.calls.limit import Limiter
from llmbatch.events import Event, GateClosed, Notice
from llmbatch.records import CallFailed, Failure, Reply, Request, Stopped, Trace
from llmbatch.rules.bottleneck import Moment
from llmbatch.rules.pace import Meters, Pace
from llmbatch.rules.quota import Quota
from llmbatch.rules.window import AutoWindow, FixedWindow, Window

Virtually = Callable[[Awaitable[Any]], Any]


class Bench:
    """A limiter around a script, and what came of each request. Make it inside the loop."""

    def __init__(self, answer: Answer, window: Window | int = 10, rpm: float | None = None) -> None:
        self.script = Script(answer)
        self.events: list[Event] = []
        self.now = asyncio.get_running_loop().time
        meters = Meters() if rpm is None else Meters({"requests": Pace(rpm)})
        self.limiter = Limiter(
            [Account("here", self.script, meters)],
            lambda: FixedWindow(window) if isinstance(window, int) else window,
            self.now,
            lambda: 0.5,
            self.events.append,
            Quota(),
        )

    @property
    def lane(self) -> Lane:
        return next(self.limiter.lanes)

    async def one(self, name: str, trace: Trace | None = None) -> Reply | Failure | type[Stopped]:
        try:
            return await self.limiter(Request("m", params={"name": name}), trace or Trace())
        except CallFailed as failed:
            return failed.failure
        except Stopped:
            return Stopped

    async def all(self, count: int) -> list[Reply | Failure | type[Stopped]]:
        return await asyncio.gather(*(self.one(str(number)) for number in range(count)))

    async def until_good(self, name: str) -> None:
        """A row that asks until it is answered."""
        trace = Trace()
        while await self.one(name, trace) is not PONG:
            pass


@pytest.mark.parametrize(("window", "count", "seconds"), [(1, 5, 5.0), (4, 8, 2.0), (10, 10, 1.0), (10, 11, 2.0)])
def test_never_more_in_flight_than_the_window(virtually: Virtually, window: int, count: int, seconds: float) -> None:
    async def main() -> None:
        bench = Bench(always(), window)
        assert await bench.all(count) == [PONG] * count
        assert bench.script.most_in_flight == bench.limiter.peak_in_flight == min(window, count)
        assert bench.now() == seconds and bench.limiter.in_flight == 0

    virtually(main())


def test_first_come_first_served(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(), window=3)
        await bench.all(12)
        assert [sent.name for sent in bench.script.sent] == [str(number) for number in range(12)]

    virtually(main())


@pytest.mark.parametrize("rpm", [30, 600, 6000])
def test_paced_evenly(virtually: Virtually, rpm: float) -> None:
    async def main() -> None:
        bench = Bench(always(latency_s=0.5), window=1000, rpm=rpm)
        await bench.all(200)
        gaps = [later - sooner for sooner, later in pairwise(bench.script.times_s[10:])]
        assert max(gaps) <= 1.01 * 60 / rpm + 0.001
        assert sum(gaps) == pytest.approx(len(gaps) * 60 / rpm, rel=0.01)

    virtually(main())


def test_a_slow_window_and_a_pace_both_hold(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(latency_s=10.0), window=2, rpm=600)
        await bench.all(6)
        assert bench.script.most_in_flight == 2 and 30.0 <= bench.now() < 30.6

    virtually(main())


def test_a_grown_window_is_used_at_once(virtually: Virtually) -> None:
    async def main() -> None:
        window = AutoWindow(1000, 10.0)
        window.answered(0.1, 0.0, None, 1)
        assert window.size == 7
        bench = Bench(always(latency_s=8.0), window, rpm=600)
        await bench.all(300)
        assert bench.script.most_in_flight > 60

    virtually(main())


# Rate limits


def limited_until(until_s: float, retry_after_s: float | None = None, latency_s: float = 1.0) -> Answer:
    refusal = replace(LIMITED, retry_after_s=retry_after_s)
    return lambda sent: (latency_s, refusal if sent.at_s < until_s else PONG)


@pytest.mark.parametrize("rpm", [None, 6000])
def test_a_429_pauses_all_rows_and_none_is_sent_before_retry_after(virtually: Virtually, rpm: float | None) -> None:
    async def main() -> None:
        bench = Bench(limited_until(1.0, retry_after_s=30.0), window=5, rpm=rpm)
        await asyncio.gather(*(bench.until_good(str(number)) for number in range(50)))
        assert len([at_s for at_s in bench.script.times_s if at_s < 1.0]) == 5
        assert min(at_s for at_s in bench.script.times_s if at_s >= 1.0) >= 31.0

    virtually(main())


def test_after_the_pause_a_ramp_not_a_stampede(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(limited_until(1.0, retry_after_s=10.0), window=64)
        await asyncio.gather(*(bench.until_good(str(number)) for number in range(200)))
        after = [round(at_s, 3) for at_s in bench.script.times_s if at_s > 1.0]
        assert [after.count(11.0 + second) for second in range(5)] == [1, 2, 4, 8, 16]
        assert bench.script.most_in_flight == 64  # and all of it is used again in the end

    virtually(main())


def test_a_429_without_retry_after_backs_off_until_it_is_over(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(limited_until(60.0, latency_s=0.1), window=20)
        await asyncio.gather(*(bench.until_good(str(number)) for number in range(40)))
        refused = [at_s for at_s in bench.script.times_s if at_s < 60.0]
        assert len(refused) <= 20 + 8  # the first wave, and then a few probes
        assert bench.now() < 60 + 60

    virtually(main())


def test_a_slow_answer_from_before_the_pause_does_not_hold_up_the_others(virtually: Virtually) -> None:
    """A row that thinks for ten minutes must not stop the run for ten minutes after one 429."""

    def answer(sent: Sent) -> tuple[float, Reply | Failure]:
        if sent.name == "0":
            return 600.0, PONG
        return (1.0, replace(LIMITED, retry_after_s=5.0)) if sent.at_s < 1.0 else (1.0, PONG)

    async def main() -> None:
        bench = Bench(answer, window=8)
        rows = [asyncio.create_task(bench.until_good(str(number))) for number in range(30)]
        await asyncio.gather(*rows[1:])
        assert bench.now() < 30.0
        await rows[0]
        assert bench.script.most_in_flight <= 8

    virtually(main())


@pytest.mark.parametrize("rpm", [None, 60_000])
def test_a_late_answer_that_asks_for_a_pause_is_obeyed_too(virtually: Virtually, rpm: float | None) -> None:
    """It was sent before the first pause and comes when that one is long over."""

    def answer(sent: Sent) -> tuple[float, Reply | Failure]:
        if sent.name == "late":
            return 20.0, replace(LIMITED, retry_after_s=30.0)
        return (1.0, replace(LIMITED, retry_after_s=1.0)) if sent.at_s < 1.0 else (1.0, PONG)

    async def main() -> None:
        bench = Bench(answer, window=4, rpm=rpm)
        late = asyncio.create_task(bench.one("late"))
        await asyncio.gather(*(bench.until_good(str(number)) for number in range(20)))
        await late
        closed_s = bench.now()
        await bench.all(10)
        assert closed_s == pytest.approx(20.0, abs=0.1)
        assert not [at_s for at_s in bench.script.times_s if closed_s <= at_s < closed_s + 30.0]
        assert len(bench.script.sent) > 30

    virtually(main())


def test_a_retry_after_on_a_503_pauses_too(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(lambda sent: (1.0, replace(BUSY, retry_after_s=9.0) if sent.at_s < 1 else PONG), window=2)
        await bench.all(6)
        assert [at_s for at_s in bench.script.times_s if 1.0 <= at_s < 10.0] == []

    virtually(main())


def test_other_failures_pause_nobody(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(BAD), window=2)
        assert await bench.all(6) == [BAD] * 6
        assert bench.now() == 3.0 and not bench.events and bench.limiter.in_flight == 0

    virtually(main())


def test_a_failed_probe_that_says_nothing_of_limits_does_not_block_the_ramp(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(lambda sent: (1.0, LIMITED if sent.at_s < 1 else BAD if sent.at_s < 4 else PONG), window=4)
        await bench.all(30)
        assert bench.lane.gate.ramp is None and bench.limiter.in_flight == 0

    virtually(main())


def test_when_a_row_was_first_limited_is_noted(virtually: Virtually) -> None:
    async def main() -> None:
        bench, trace = Bench(limited_until(100.0, retry_after_s=4.0)), Trace()
        for _ in range(3):
            assert isinstance(await bench.one("a", trace), Failure)
        assert trace.limited_since_s == 1.0

    virtually(main())


def test_a_long_pause_is_said_once_not_by_every_row(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(limited_until(1.0, retry_after_s=600.0), window=50)
        await bench.all(50)
        closed = [event for event in bench.events if isinstance(event, GateClosed)]
        notices = [event for event in bench.events if isinstance(event, Notice)]
        assert closed and closed[0].for_s == 600.0 and "slow down" in closed[0].failure.message
        assert len(notices) == 1 and "600 s" in notices[0].text

    virtually(main())


@pytest.mark.parametrize("pause_s", [6.0, 10.0, 20.0, 45.0])
@pytest.mark.parametrize("refused_s", [3.0, 15.0, 45.0])
def test_who_refuses_on_after_the_pause_it_asked_for_says_nothing_of_the_rate(
    virtually: Virtually, pause_s: float, refused_s: float
) -> None:
    """A minute of refusals, few of them because each asks for a long pause; then all is as before within 30 s."""

    def answer(sent: Sent) -> tuple[float, Reply | Failure]:
        refuses = 5.0 <= sent.at_s < 5.0 + refused_s
        return (0.001, replace(LIMITED, retry_after_s=pause_s)) if refuses else (0.2, PONG)

    async def main() -> None:
        bench = Bench(answer, window=10)

        async def ask(name: str) -> None:
            await asyncio.sleep(int(name) * 0.02)
            while bench.now() < 130.0:
                await bench.until_good(name)

        await asyncio.gather(*(ask(str(number)) for number in range(10)))
        back_s = next(at_s for at_s in bench.script.times_s if at_s >= 5.0 + refused_s)
        times_s = [at_s for at_s in bench.script.times_s if back_s + 20.0 <= at_s < back_s + 30.0]
        assert len(times_s) >= 0.9 * 50 * 10

    virtually(main())


# Stopping and cancelling


def test_closing_stops_who_waits_and_lets_go_on_what_is_in_flight(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(latency_s=5.0), window=2)
        asking = asyncio.gather(*(bench.one(str(number)) for number in range(6)))
        await asyncio.sleep(1.0)
        bench.limiter.close()
        assert await asking == [PONG, PONG, Stopped, Stopped, Stopped, Stopped]
        assert await bench.one("later") is Stopped
        assert len(bench.script.sent) == 2 and bench.now() == 5.0

    virtually(main())


def test_closing_wakes_who_waits_for_a_long_pause(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(limited_until(1.0, retry_after_s=1e9))
        await bench.one("first")
        waiting = asyncio.create_task(bench.one("second"))
        await asyncio.sleep(1.0)
        bench.limiter.close()
        assert await waiting is Stopped and bench.now() == 2.0

    virtually(main())


def test_a_cancelled_waiter_leaves_no_hole_and_takes_no_slot(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(), window=1)
        rows = [asyncio.create_task(bench.one(str(number))) for number in range(4)]
        await asyncio.sleep(0.5)
        rows[1].cancel()
        await asyncio.gather(*rows, return_exceptions=True)
        assert [(sent.name, sent.at_s) for sent in bench.script.sent] == [("0", 0.0), ("2", 1.0), ("3", 2.0)]
        assert bench.limiter.in_flight == 0

    virtually(main())


def test_a_waiter_cancelled_in_the_moment_it_is_admitted_gives_its_slot_on(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(), window=1)
        first, second, third = (asyncio.create_task(bench.one(name)) for name in "abc")
        first.add_done_callback(lambda _: second.cancel())
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert third.result() is PONG and bench.limiter.in_flight == 0

    virtually(main())


def test_a_request_cancelled_in_flight_gives_its_slot_back(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(latency_s=100.0), window=1)
        task = asyncio.create_task(bench.one("a"))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert bench.limiter.in_flight == 0
        assert await bench.one("b") is PONG

    virtually(main())


# What binds


def test_it_says_what_the_first_in_the_queue_waits_for(virtually: Virtually) -> None:
    async def main() -> None:
        by_window, by_rate = Bench(always(), 2), Bench(always(latency_s=0.1), 50, rpm=60)
        closed = Bench(limited_until(0.5, retry_after_s=9.0, latency_s=0.0), 8)
        assert by_window.limiter.waiting() == Moment(allowed=2)
        await closed.one("a")
        assert closed.limiter.waiting().waits_for is None, "the gate is closed, but nobody stands before it"
        tasks = [asyncio.create_task(bench.all(5)) for bench in (by_window, by_rate, closed)]
        await asyncio.sleep(0.5)
        status = by_window.limiter.status(7, "concurrency")
        assert (status.in_flight, status.allowed, status.waiting_retry, status.binding) == (2, 2, 7, "concurrency")
        assert by_window.limiter.waiting() == Moment("window", in_flight=2, allowed=2)
        assert by_rate.limiter.waiting().waits_for == "requests"
        assert closed.limiter.waiting().waits_for == "gate" and closed.limiter.status(0, "idle").gate_closed_s == 8.5
        await asyncio.gather(*tasks)

    virtually(main())


def test_a_lane_knows_its_lowest_limit_and_whose_it_is(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(), rpm=600)
        await bench.one("a")
        assert bench.lane.limit("requests", bench.now()) == (600.0, True)
        assert bench.lane.limit("tokens", bench.now()) is None
        bench.lane.learnt.put("tokens", Pace(9000.0))
        bench.lane.learnt.put("requests", Pace(900.0))
        assert bench.lane.limit("requests", bench.now()) == (600.0, True)
        assert bench.lane.limit("tokens", bench.now()) == (9000.0, False)
        bench.lane.learnt.put("requests", Pace(60.0))
        assert bench.lane.limit("requests", bench.now()) == (60.0, False)

    virtually(main())


def test_rows_that_wait_for_the_ramp_wait_for_the_gate(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(limited_until(0.5, retry_after_s=2.0), window=8)
        await bench.all(8)
        asking = asyncio.create_task(bench.all(200))
        await asyncio.sleep(1.5)
        assert bench.limiter.waiting() == Moment("gate", allowed=1, gate_closed=True)
        await asyncio.sleep(1.0)
        assert bench.limiter.waiting() == Moment("gate", in_flight=1, allowed=1)
        while bench.lane.gate.ramp is not None:
            await asyncio.sleep(0.1)
        assert bench.limiter.waiting() == Moment("window", in_flight=8, allowed=8)
        await asking

    virtually(main())


def test_rows_wait_for_the_pause_of_the_user_whatever_else_there_is(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(), window=2)
        bench.limiter.pause()
        assert bench.limiter.waiting().waits_for is None
        asking = asyncio.create_task(bench.all(4))
        await asyncio.sleep(1.0)
        assert bench.limiter.waiting() == Moment("paused", allowed=2)
        bench.limiter.resume()
        await asking

    virtually(main())


@pytest.mark.parametrize("step_s", [0.003, 0.01, 0.03])
def test_a_clock_that_moves_between_two_looks_strands_nobody(virtually: Virtually, step_s: float) -> None:
    """What was not yet due at the first look may be due at the second; then no timer is set, and none may be needed."""

    async def main() -> None:
        bench = Bench(lambda sent: (0.0, PONG), rpm=600)
        loop_time, looks = bench.now, 0

        def clock() -> float:
            nonlocal looks
            looks += 1
            return loop_time() + looks * step_s

        bench.limiter._clock = clock
        async with asyncio.timeout(60):
            for number in range(100):
                assert await bench.one(str(number)) is PONG

    virtually(main())


def test_a_late_retry_after_holds_also_when_the_ramp_is_over(virtually: Virtually) -> None:
    """One of two requests is slow to say 5 s; the other's pause is over, and its ramp as wide as the window."""

    def answer(sent: Sent) -> tuple[float, Reply | Failure]:
        if sent.name == "slow":
            return 1.2, replace(LIMITED, retry_after_s=5.0)
        return (0.1, replace(LIMITED, retry_after_s=1.0)) if sent.name == "quick" else (0.5, PONG)

    async def main() -> None:
        bench = Bench(answer, window=2)
        early = asyncio.gather(bench.one("slow"), bench.one("quick"))
        await asyncio.sleep(0.2)
        probe = asyncio.create_task(bench.one("probe"))
        await early
        await probe
        await bench.one("next")
        assert bench.script.sent[-1].name == "next" and bench.script.times_s[-1] >= 6.2

    virtually(main())


def test_slack_is_room_for_what_nobody_must_have(virtually: Virtually) -> None:
    """A window that was set may be full; a learnt one, a pace, a gate and a queue may not."""

    async def main() -> None:
        full = Bench(always(), window=2)
        rows = [asyncio.create_task(full.one(str(number))) for number in range(2)]
        await asyncio.sleep(0)
        assert full.limiter.in_flight == 2 and full.limiter.slack()
        rows.append(asyncio.create_task(full.one("waits")))
        await asyncio.sleep(0)
        assert not full.limiter.slack()
        await asyncio.gather(*rows)
        full.limiter.close()
        assert not full.limiter.slack()

        learnt = Bench(always(), AutoWindow(10))
        rows = [asyncio.create_task(learnt.one(str(number))) for number in range(9)]
        await asyncio.sleep(0)
        assert learnt.limiter.in_flight == 9 and not learnt.limiter.slack()
        await asyncio.gather(*rows)
        assert learnt.limiter.slack()

        paced = Bench(always(), rpm=6)
        assert paced.limiter.slack()
        await paced.one("a")
        assert not paced.limiter.slack()

        refused = Bench(always(LIMITED))
        await refused.one("a")
        assert not refused.limiter.slack()
        await asyncio.sleep(60.0)
        assert not refused.limiter.slack()  # it has a limit, and where that is, is only guessed

    virtually(main())
