"""A server that is ill for a while, and the whole crew in virtual time: few probes, no row lost, quick recovery."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from scripted import BUSY, CUT, LIMITED, PONG, Answer, Script, Sent

from llmbatch.calls.lane import Account
from llmbatch.calls.stack import build
from llmbatch.events import AttemptFailed, Event, GateClosed, Notice
from llmbatch.options import RetryLimits
from llmbatch.records import Failure, Reply, Request, Trace
from llmbatch.rules.pace import Meters, Pace
from llmbatch.rules.quota import PAUSE_S, Quota
from llmbatch.rules.window import FixedWindow
from llmbatch.scheduler import Job, Scheduler

Virtually = Callable[[Awaitable[Any]], Any]
LATENCY_S = 1.0


class Rows:
    """A feed of ``count`` rows, all at hand; those in ``failed_before`` failed in an earlier run."""

    def __init__(self, count: int, failed_before: range = range(0)) -> None:
        self.count, self.number, self.failed_before = count, 0, failed_before

    def take(self) -> Job | None:
        if self.number == self.count:
            return None
        self.number += 1
        request = Request("m", params={"name": str(self.number)})
        return Job(self.number, None, "k", request, failed_before=self.number in self.failed_before)

    async def refill(self) -> bool:
        return False


class Bench:
    """The crew around a script. ``events`` come with their time."""

    def __init__(self, answer: Answer, rows: Rows, window: int = 16, rpm: float | None = None) -> None:
        self.script = Script(answer)
        self.now = asyncio.get_running_loop().time
        self.events: list[tuple[float, Event]] = []
        self.done: dict[int, tuple[Reply | Failure, Trace]] = {}
        self.window = window
        self.scheduler = Scheduler(rows, self._finish)
        self.stack = build(
            [Account("here", self.script, Meters() if rpm is None else Meters({"requests": Pace(rpm)}))],
            window=lambda: FixedWindow(window),
            retry=RetryLimits(),
            rest=self.scheduler.rest,
            clock=self.now,
            chance=random.Random(1).random,
            listen=lambda event: self.events.append((self.now(), event)),
        )

    def _finish(self, job: Job, outcome: Reply | Failure, trace: Trace) -> None:
        self.done[job.row] = outcome, trace

    async def run(self, until_s: float = 1e9) -> None:
        stopping = asyncio.get_running_loop().call_later(until_s, self.stop)
        await self.scheduler.run(self.stack.call, lambda: self.window)
        stopping.cancel()

    def stop(self) -> None:
        self.scheduler.stop()
        self.stack.limiter.close()

    def sent(self, from_s: float, to_s: float) -> int:
        return sum(from_s <= at_s < to_s for at_s in self.script.times_s)

    @property
    def failed(self) -> int:
        return sum(isinstance(outcome, Failure) for outcome, _ in self.done.values())

    @property
    def closed_s(self) -> list[float]:
        return [at_s for at_s, event in self.events if isinstance(event, GateClosed) and event.ill]

    @property
    def notices(self) -> list[str]:
        return [event.text for _, event in self.events if isinstance(event, Notice)]

    @property
    def quota(self) -> Quota:
        return self.stack.call._quota


def failing(share: float, failure: Failure = BUSY, seed: int = 7) -> Answer:
    """``failure`` by chance."""
    chance = random.Random(seed)
    return lambda sent: (LATENCY_S, failure if chance.random() < share else PONG)


def ill(from_s: float, to_s: float, failure: Failure = BUSY) -> Answer:
    return lambda sent: (LATENCY_S, failure if from_s <= sent.at_s < to_s else PONG)


@pytest.mark.parametrize("rpm", [None, 6000])
def test_ten_minutes_of_503_cost_one_probe_in_30_s_and_no_row(virtually: Virtually, rpm: float | None) -> None:
    async def main() -> None:
        bench = Bench(ill(60, 660), Rows(3000), rpm=rpm)
        await bench.run()
        spent_s = bench.closed_s[0]
        assert 60 < spent_s < 80  # a hundred retries, and then no more
        probes = [at_s for at_s in bench.script.times_s if spent_s < at_s < 660]
        assert len(probes) >= 18 and min(later - sooner for sooner, later in pairwise(probes)) >= PAUSE_S
        assert len(bench.done) == 3000 and bench.failed == 0

    virtually(main())


@pytest.mark.parametrize("window", [16, 200])
def test_within_30_s_of_the_first_good_probe_the_window_is_full_again(virtually: Virtually, window: int) -> None:
    async def main() -> None:
        bench = Bench(ill(10, 200), Rows(60 * window), window)
        await bench.run()
        mended_s = next(at_s for at_s in bench.script.times_s if at_s >= 200)
        assert mended_s < 200 + PAUSE_S + LATENCY_S
        assert bench.sent(mended_s + 29, mended_s + 30) >= 0.9 * window
        assert bench.failed == 0

    virtually(main())


def test_it_is_told_once_and_shown_as_the_gate(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(ill(10, 200), Rows(2000))
        running = asyncio.create_task(bench.run())
        await asyncio.sleep(100)
        assert bench.stack.limiter.waiting().waits_for == "gate"
        await running
        assert len(bench.closed_s) > 3 and len(bench.notices) == 1
        for word in ("100% of the last requests failed", "503 overloaded: busy", "30 s between probes"):
            assert word in bench.notices[0]
        assert bench.stack.limiter.waiting().waits_for is None

    virtually(main())


def test_a_later_outage_is_told_again(virtually: Virtually) -> None:
    async def main() -> None:
        both = lambda sent: (LATENCY_S, BUSY if sent.at_s % 600 > 540 else PONG)  # noqa: E731
        bench = Bench(both, Rows(100_000))
        await bench.run(until_s=1190)
        assert len(bench.notices) == 2

    virtually(main())


def test_when_half_of_the_requests_fail_retries_are_a_tenth_at_most(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(failing(0.5), Rows(10_000))
        await bench.run(until_s=1200)
        spent_s = bench.closed_s[0]
        assert spent_s < 60
        paid_s = [
            at_s
            for at_s, event in bench.events
            if isinstance(event, AttemptFailed) and "attempt" in event.reason and event.retry_in_s is not None
        ]
        assert sum(at_s > spent_s for at_s in paid_s) <= 0.1 * bench.sent(spent_s, 1201)
        for from_s in range(int(spent_s) + 1, 1080, 20):
            assert bench.sent(from_s, from_s + 120) <= 0.1 * 120 * bench.window
        assert len(bench.done) - bench.failed > 200, "and it goes on, slowly"

    virtually(main())


@pytest.mark.parametrize(
    ("answer", "rows"),
    [
        (lambda: failing(0.01), 4000),
        (lambda: failing(0.005, CUT), 4000),
        (lambda: failing(0.2), 4000),  # even then
    ],
)
def test_noise_closes_nothing(virtually: Virtually, answer: Callable[[], Answer], rows: int) -> None:
    async def main() -> None:
        bench = Bench(answer(), Rows(rows))
        await bench.run()
        assert not bench.closed_s and not bench.notices and len(bench.done) == rows

    virtually(main())


def test_a_whole_window_cut_off_at_once_closes_nothing(virtually: Virtually) -> None:
    """A proxy restarts: every connection is reset."""

    async def main() -> None:
        bench = Bench(ill(5, 6, CUT), Rows(2000), window=100)
        await bench.run()
        assert not bench.closed_s and bench.failed == 0

    virtually(main())


def test_rows_that_fail_by_themselves_do_not_slow_down_the_others(virtually: Virtually) -> None:
    """One row in ten always gets a 500: it has its five tries, and the others go on at full speed."""

    async def main() -> None:
        bench = Bench(lambda sent: (LATENCY_S, BUSY if sent.name.endswith("7") else PONG), Rows(2000))
        await bench.run()
        assert bench.failed == 200 and not bench.closed_s
        assert all(len(trace.attempts) == 5 for outcome, trace in bench.done.values() if outcome is BUSY)
        assert bench.now() < 1.1 * len(bench.script.sent) * LATENCY_S / bench.window + 30
        assert bench.quota.tokens >= 450

    virtually(main())


def test_rows_that_failed_before_say_nothing_of_the_servers_health(virtually: Virtually) -> None:
    """Only they are left, and all of them fail again: the run must come to its end, not wait for their recovery."""

    async def main() -> None:
        bench = Bench(lambda sent: (LATENCY_S, BUSY), Rows(200, failed_before=range(1, 201)))
        bench.quota.tokens = 0
        await bench.run()
        assert bench.failed == 200 and not bench.closed_s
        assert len(bench.script.sent) == 200 * 5

    virtually(main())


@pytest.mark.parametrize("tokens", [0, 500])
def test_rate_limits_neither_pay_nor_close_the_gate_for_30_s(virtually: Virtually, tokens: int) -> None:
    """They have a gate of their own."""

    async def main() -> None:
        bench = Bench(ill(0, 20, LIMITED), Rows(50))
        bench.quota.tokens = tokens
        await bench.run()
        assert bench.failed == 0 and not bench.closed_s and bench.quota.tokens >= tokens

    virtually(main())


def test_what_may_have_been_billed_is_asked_once_more_also_when_the_server_is_ill(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(ill(0, 400, CUT), Rows(300))
        await bench.run()
        assert bench.closed_s
        assert max(trace.ambiguous for _, trace in bench.done.values()) == 2

    virtually(main())


def test_a_row_that_fails_while_others_are_answered_is_lost_after_its_attempts(virtually: Virtually) -> None:
    """The quota is empty, but its failures are its own: they count."""

    def answer(sent: Sent) -> tuple[float, Reply | Failure]:
        return LATENCY_S, BUSY if sent.name == "1" else PONG

    async def main() -> None:
        bench = Bench(answer, Rows(60), window=2)
        bench.quota.tokens = 0
        await bench.run()
        outcome, trace = bench.done[1]
        assert outcome is BUSY and len(bench.done) == 60
        assert 5 <= len(trace.attempts) <= 6

    virtually(main())
