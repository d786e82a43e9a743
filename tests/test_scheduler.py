"""The crew, in virtual time: every row once, no worker idle or too many, and an orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from scripted import BAD, BUSY, CUT, LIMITED, PONG, Answer, Script, Sent, always

from llmbatch.calls.lane import Account
from llmbatch.calls.limit import Limiter
from llmbatch.calls.retry import Retry
from llmbatch.options import RetryLimits
from llmbatch.records import Failure, Reply, Request, Trace
from llmbatch.rules.pace import Meters, Pace
from llmbatch.rules.quota import Quota
from llmbatch.rules.window import AutoWindow, FixedWindow, Window
from llmbatch.scheduler import Job, Scheduler

Virtually = Callable[[Awaitable[Any]], Any]


class Batches:
    """A feed of ``rows`` rows that come ``at_once`` at a time, each time after ``wait_s``."""

    def __init__(self, rows: int, at_once: int = 100, wait_s: float = 0.0) -> None:
        self.left, self.at_once, self.wait_s = rows, at_once, wait_s
        self.ready: list[Job] = []
        self.number = 0
        self.refilling = 0

    def take(self) -> Job | None:
        return self.ready.pop(0) if self.ready else None

    async def refill(self) -> bool:
        self.refilling += 1
        assert self.refilling == 1, "one worker at a time"
        await asyncio.sleep(self.wait_s)
        for _ in range(min(self.left, self.at_once)):
            self.number += 1
            self.left -= 1
            self.ready.append(
                Job(self.number, None, f"fp{self.number}", Request("m", params={"name": str(self.number)}))
            )
        self.refilling -= 1
        return bool(self.ready)


class Never(Batches):
    """Somebody's terminal: the next line may never come."""

    async def refill(self) -> bool:
        if self.left:
            return await super().refill()
        await asyncio.Event().wait()
        raise AssertionError


class Bench:
    """retry( limit( script )) under a scheduler, as a run has them. Make it inside the loop."""

    def __init__(
        self,
        answer: Answer,
        feed: Batches,
        window: Window | int = 5,
        rpm: float | None = None,
        limits: RetryLimits | None = None,
        row_deadline_s: float | None = None,
    ) -> None:
        self.script = Script(answer)
        self.now = asyncio.get_running_loop().time
        self.done: dict[int, tuple[Reply | Failure, Trace]] = {}
        self.scheduler = Scheduler(feed, self.finish)
        self.window = FixedWindow(window) if isinstance(window, int) else window
        meters = Meters() if rpm is None else Meters({"requests": Pace(rpm)})
        self.limiter = Limiter(
            [Account("here", self.script, meters)],
            lambda: self.window,
            self.now,
            lambda: 0.5,
            lambda event: None,
            Quota(),
            row_deadline_s=row_deadline_s,
        )
        self.retry = Retry(
            self.limiter,
            limits or RetryLimits(),
            self.scheduler.rest,
            self.now,
            lambda: 0.5,
            lambda event: None,
            Quota(),
        )

    def finish(self, job: Job, outcome: Reply | Failure, trace: Trace) -> None:
        assert job.row not in self.done, "a row ends once"
        self.done[job.row] = outcome, trace

    async def run(self) -> None:
        await self.scheduler.run(self.retry, lambda: self.window.size)

    @property
    def good(self) -> int:
        return sum(1 for outcome, _ in self.done.values() if isinstance(outcome, Reply))

    def stop(self) -> None:
        self.scheduler.stop()
        self.limiter.close()


@pytest.mark.parametrize(
    ("rows", "window", "at_once", "seconds"),
    [(0, 5, 10, 0.0), (1, 5, 10, 1.0), (10, 5, 100, 2.0), (11, 5, 3, 3.0), (7, 100, 1, 1.0), (30, 1, 7, 30.0)],
)
def test_every_row_once_and_no_worker_idle(
    virtually: Virtually, rows: int, window: int, at_once: int, seconds: float
) -> None:
    async def main() -> None:
        bench = Bench(always(), Batches(rows, at_once), window)
        await bench.run()
        assert sorted(bench.done) == list(range(1, rows + 1)) and bench.good == rows
        assert bench.now() == seconds
        assert len(bench.script.sent) == rows

    virtually(main())


def test_a_slow_input_holds_up_nothing_that_is_there(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(latency_s=10.0), Batches(6, at_once=1, wait_s=1.0), window=10)
        await bench.run()
        assert bench.script.times_s == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]

    virtually(main())


# Retries


def test_a_row_that_has_rested_goes_on_though_the_input_is_silent(virtually: Virtually) -> None:
    """All workers wait for a line that never comes; none of them keeps its place from the row."""

    def answer(sent: Sent) -> tuple[float, Reply | Failure]:
        return 1.0, PONG if sent.attempt == 2 else BUSY

    async def main() -> None:
        bench = Bench(answer, Never(2), window=2, limits=RetryLimits(base_s=10.0))
        asyncio.get_running_loop().call_later(100.0, bench.stop)
        await bench.run()
        assert bench.good == 2 and bench.script.times_s == [0.0, 0.0, 6.0, 6.0]
        assert bench.script.most_in_flight == 2

    virtually(main())


def test_rested_rows_and_new_ones_together_are_never_more_than_the_capacity(virtually: Virtually) -> None:
    async def main() -> None:
        busy = most = 0

        async def call(request: Request, trace: Trace) -> Reply:
            nonlocal busy, most
            for _ in range(3):
                busy += 1
                most = max(most, busy)
                await asyncio.sleep(1.0)
                busy -= 1
                await scheduler.rest(4.0)
            return PONG

        ended: list[int] = []
        scheduler = Scheduler(
            Batches(40, at_once=3, wait_s=2.0),
            lambda job, outcome, trace: ended.append(job.row),  # type: ignore[arg-type,return-value]
        )
        await scheduler.run(call, lambda: 3)
        assert most == 3 and sorted(ended) == list(range(1, 41))

    virtually(main())


def test_a_row_waiting_to_retry_holds_no_slot_and_no_worker(virtually: Virtually) -> None:
    """With one slot and one worker, 20 rows go on while the first one rests for 30 s."""

    def answer(sent: Sent) -> tuple[float, Reply | Failure]:
        return 1.0, BUSY if sent.name == "1" and sent.attempt == 1 else PONG

    async def main() -> None:
        bench = Bench(answer, Batches(21), window=1, limits=RetryLimits(base_s=60.0))
        await bench.run()
        assert bench.good == 21 and bench.script.most_in_flight == 1
        assert bench.now() == pytest.approx(32.0)
        assert sum(1 for at_s in bench.script.times_s if at_s < 21.5) == 21

    virtually(main())


def test_all_rows_may_rest_at_once_and_the_next_are_still_sent(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(
            lambda sent: (1.0, BUSY if sent.attempt == 1 else PONG),
            Batches(100),
            window=10,
            limits=RetryLimits(base_s=60.0),
        )
        await bench.run()
        assert bench.good == 100
        assert bench.script.times_s[:100] == [float(second) for second in range(10) for _ in range(10)]

    virtually(main())


def test_resting_rows_are_tried_to_the_end_after_the_feed_is_exhausted(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(
            lambda sent: (1.0, BUSY if sent.attempt < 5 else PONG), Batches(3), limits=RetryLimits(base_s=20.0)
        )
        await bench.run()
        assert bench.good == 3 and len(bench.script.sent) == 15 and bench.scheduler.resting == 0

    virtually(main())


def test_rows_back_from_rest_do_not_exceed_the_window(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(
            lambda sent: (3.0, BUSY if sent.attempt == 1 and int(sent.name) <= 40 else PONG), Batches(200), window=8
        )
        await bench.run()
        assert bench.good == 200 and bench.script.most_in_flight == 8

    virtually(main())


def test_rate_limits_do_not_use_up_the_attempts_of_a_row(virtually: Virtually) -> None:
    async def main() -> None:
        refusal = replace(LIMITED, retry_after_s=10.0)
        bench = Bench(
            lambda sent: (0.5, refusal if sent.at_s < 300 else PONG), Batches(40), limits=RetryLimits(attempts=2)
        )
        await bench.run()
        assert bench.good == 40
        assert sum(1 for at_s in bench.script.times_s if at_s < 300) <= 5 + 300 / 10

    virtually(main())


def test_an_ambiguous_failure_is_asked_again_once(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(CUT), Batches(4))
        await bench.run()
        assert len(bench.script.sent) == 8
        assert all(outcome is CUT and trace.ambiguous == 2 for outcome, trace in bench.done.values())

    virtually(main())


def test_a_row_ends_by_its_deadline_however_often_it_may_be_tried(virtually: Virtually) -> None:
    async def main() -> None:
        limits = RetryLimits(attempts=1000, base_s=3.0)
        bench = Bench(always(BUSY), Batches(3), limits=limits, row_deadline_s=20.0)
        await bench.run()
        assert len(bench.done) == 3 and bench.now() <= 21.0 and len(bench.script.sent) > 6

    virtually(main())


# The size of the crew


def test_a_grown_window_adds_workers(virtually: Virtually) -> None:
    async def main() -> None:
        window = AutoWindow(1000, 100.0)
        window.answered(0.01, 0.0, None, 1)
        start = window.size
        bench = Bench(always(latency_s=2.0), Batches(2000), window, rpm=6000)
        await bench.run()
        assert start < 10 and bench.script.most_in_flight > 150 and bench.good == 2000

    virtually(main())


def test_surplus_workers_leave_when_the_window_shrinks(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(), Batches(200), window=50)
        running = asyncio.create_task(bench.run())
        await asyncio.sleep(0.5)
        assert isinstance(bench.window, FixedWindow)
        bench.window.size = 3
        await asyncio.sleep(10.0)
        assert len(bench.scheduler._workers) == 3 and bench.script.in_flight == 3
        await running
        assert bench.good == 200

    virtually(main())


def test_not_all_workers_leave_when_all_answers_come_at_once(virtually: Virtually) -> None:
    """A window learnt from the first answers may shrink while its whole old size is in flight."""

    async def main() -> None:
        window = AutoWindow(1000, 10.0)
        assert window.size > 100
        bench = Bench(always(latency_s=0.5), Batches(1000), window, rpm=600)
        await bench.run()
        assert bench.good == 1000

    virtually(main())


# The end


def test_stop_lets_what_is_in_flight_finish_and_sends_nothing_more(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(latency_s=4.0), Batches(100), window=5, rpm=60)
        running = asyncio.create_task(bench.run())
        await asyncio.sleep(3.5)
        in_flight = bench.script.in_flight
        bench.stop()
        await running
        assert 0 < in_flight < 5  # and the others waited for their turn
        assert len(bench.script.sent) == bench.good == in_flight and bench.now() < 8.0

    virtually(main())


def test_stop_wakes_rows_that_rest_and_leaves_them_pending(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(BUSY), Batches(3), limits=RetryLimits(base_s=1000.0, cap_s=1000.0))
        running = asyncio.create_task(bench.run())
        await asyncio.sleep(2.0)
        assert bench.scheduler.resting == 3
        bench.stop()
        await running
        assert bench.now() == 2.0 and not bench.done

    virtually(main())


def test_a_row_that_fails_after_the_stop_is_not_tried_again_and_stays_pending(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(lambda sent: (5.0, PONG if sent.name == "1" else BUSY), Batches(3))
        running = asyncio.create_task(bench.run())
        await asyncio.sleep(1.0)
        bench.stop()
        await running
        assert list(bench.done) == [1] and len(bench.script.sent) == 3

    virtually(main())


def test_a_row_that_fails_for_good_after_the_stop_is_done(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(BAD, 5.0), Batches(3))
        running = asyncio.create_task(bench.run())
        await asyncio.sleep(1.0)
        bench.stop()
        await running
        assert [outcome for outcome, _ in bench.done.values()] == [BAD] * 3

    virtually(main())


def test_stop_does_not_wait_for_a_line_that_may_never_come(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(latency_s=4.0), Never(2))
        running = asyncio.create_task(bench.run())
        await asyncio.sleep(1.0)
        bench.stop()
        await asyncio.wait_for(running, 100.0)
        assert bench.good == 2 and bench.now() == 4.0

    virtually(main())


def test_stop_before_the_start(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(), Batches(10))
        bench.stop()
        await bench.run()
        assert not bench.script.sent

    virtually(main())


def test_abandon_cancels_what_is_in_flight_and_leaves_it_pending(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(lambda sent: (1.0 if sent.name == "1" else 500.0, PONG), Batches(10), window=3)
        running = asyncio.create_task(bench.run())
        await asyncio.sleep(2.0)
        bench.stop()
        await asyncio.sleep(1.0)
        bench.scheduler.abandon()
        await running
        assert list(bench.done) == [1] and bench.now() == 3.0 and bench.limiter.in_flight == 0

    virtually(main())


@pytest.mark.parametrize("where", ["call", "finish", "feed"])
def test_a_bug_surfaces_and_ends_the_run(virtually: Virtually, where: str) -> None:
    async def main() -> None:
        feed = Batches(100)
        bench = Bench(always(), feed, window=3)

        def broken(*_: object) -> Any:
            if where == "feed" and bench.done:
                raise ZeroDivisionError
            if where == "feed":
                return Batches.take(feed)
            raise ZeroDivisionError

        if where == "call":
            bench.script._answer = broken
        elif where == "finish":
            bench.scheduler._finish = broken
        else:
            feed.take = broken  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            await bench.run()

    virtually(main())


def test_a_bug_in_one_row_does_not_throw_away_the_others(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(lambda sent: (1.0 if sent.name == "1" else 5.0, PONG), Batches(10), window=3)
        finish = bench.scheduler._finish

        def broken(job: Job, *rest: Any) -> Any:
            return 1 / 0 if job.row == 1 else finish(job, *rest)

        bench.scheduler._finish = broken
        with pytest.raises(ZeroDivisionError):
            await bench.run()
        assert sorted(bench.done) == [2, 3], "in flight, so paid; no further row is sent"

    virtually(main())


def test_ten_thousand_rows_with_faults_add_up(virtually: Virtually) -> None:
    def answer(sent: Sent) -> tuple[float, Reply | Failure]:
        fate = hash((int(sent.name), sent.attempt)) % 100
        if fate < 3:
            return 0.2, replace(LIMITED, retry_after_s=1.0 if fate else None)
        return (0.1 + fate / 100, PONG) if fate > 12 else (0.3, (BUSY, CUT, BAD)[fate % 3])

    async def main() -> None:
        bench = Bench(answer, Batches(10_000, at_once=64), window=64, rpm=30_000)
        await bench.run()
        assert sorted(bench.done) == list(range(1, 10_001))
        assert sum(len(trace.attempts) for _, trace in bench.done.values()) == len(bench.script.sent)
        assert bench.script.most_in_flight <= 64 and bench.limiter.in_flight == 0

    virtually(main())


class Unwritten(Bench):
    """The lines of its rows are written when the test says so."""

    def finish(self, job: Job, outcome: Reply | Failure, trace: Trace) -> asyncio.Future[None]:  # type: ignore[override]
        super().finish(job, outcome, trace)
        self.lines.append(asyncio.get_running_loop().create_future())
        return self.lines[-1]

    async def started(self) -> asyncio.Task[None]:
        self.lines: list[asyncio.Future[None]] = []
        return asyncio.create_task(self.run())


def test_a_row_that_has_rested_waits_for_a_place(virtually: Virtually) -> None:
    """Rows under way and rows not yet written are together never more than the capacity, tries again included."""

    async def main() -> None:
        def answer(sent: Sent) -> tuple[float, Reply | Failure]:
            return 1.0, CUT if (sent.name, sent.attempt) == ("1", 1) else PONG

        bench = Unwritten(answer, Batches(3), 2, limits=RetryLimits(ambiguous=1))
        running = await bench.started()
        await asyncio.sleep(300)
        assert sorted(bench.done) == [2, 3] and len(bench.script.sent) == 3
        bench.lines[0].set_result(None)
        await asyncio.sleep(10)
        assert sorted(bench.done) == [1, 2, 3] and len(bench.script.sent) == 4
        for line in bench.lines[1:]:
            line.set_result(None)
        await running

    virtually(main())


def test_rows_that_rest_when_the_input_ends_are_all_tried_again(virtually: Virtually) -> None:
    async def main() -> None:
        def answer(sent: Sent) -> tuple[float, Reply | Failure]:
            return 1.0, BUSY if sent.attempt == 1 else PONG

        bench = Bench(answer, Batches(40), 3)
        await bench.run()
        assert bench.good == 40 and bench.script.most_in_flight <= 3

    virtually(main())


# What it tells of itself


def test_it_says_whether_it_waits_for_rows_and_whether_it_takes_any(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(always(latency_s=3.0), Batches(1, wait_s=2.0), window=4)
        running = asyncio.create_task(bench.run())
        told = []
        for _ in range(3):
            await asyncio.sleep(1.5)
            told.append((bench.scheduler.reading, bench.scheduler.taking))
        await running
        assert told == [(True, True), (True, True), (False, False)]  # at 4.0 s the input was found to be at its end

    virtually(main())


def test_rows_whose_request_is_being_made_are_counted(virtually: Virtually) -> None:
    class Prepared(Batches):
        def take(self) -> Job | None:
            job = super().take()
            return None if job is None else replace(job, prepare=slowly)

    async def slowly() -> Request:
        await asyncio.sleep(2.0)
        return Request("made")

    async def main() -> None:
        bench = Bench(always(), Prepared(3), window=3)
        running = asyncio.create_task(bench.run())
        await asyncio.sleep(1.0)
        assert bench.scheduler.preparing == 3 and bench.script.in_flight == 0
        await asyncio.sleep(1.5)
        assert bench.scheduler.preparing == 0 and bench.script.in_flight == 3
        bench.scheduler.abandon()
        await asyncio.gather(running, return_exceptions=True)

    virtually(main())


def test_a_row_that_is_given_up_while_its_request_is_made_is_not_counted_any_more(virtually: Virtually) -> None:
    async def never() -> Request:
        await asyncio.sleep(1e6)
        raise AssertionError

    class Prepared(Batches):
        def take(self) -> Job | None:
            job = super().take()
            return None if job is None else replace(job, prepare=never)

    async def main() -> None:
        bench = Bench(always(), Prepared(3), window=3)
        running = asyncio.create_task(bench.run())
        await asyncio.sleep(1.0)
        bench.scheduler.abandon()
        await asyncio.gather(running, return_exceptions=True)
        assert bench.scheduler.preparing == 0

    virtually(main())
