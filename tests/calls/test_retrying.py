"""Asking again, by the verdict: each row for itself, and told to whoever listens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from scripted import BAD, BUSY, CUT, LIMITED, PONG, Script, Sent

from llmbatch.calls.retry import Retry
from llmbatch.events import AttemptFailed, Event
from llmbatch.options import RetryLimits
from llmbatch.records import CallFailed, Failure, Reply, Request, Stopped, Trace
from llmbatch.rules.quota import Quota

Virtually = Callable[[Awaitable[Any]], Any]
OTHER = Failure("rejected", "http_500", "oops", http_status=500, retryable=True)


class Bench:
    """A retry layer around a script of outcomes, one list for each row; ``rests`` are the pauses it took."""

    def __init__(self, limits: RetryLimits | None = None, chance: float = 0.5, **rows: list[Reply | Failure]) -> None:
        self.script = Script(self._answer)
        self.events: list[Event] = []
        self.rests: list[float] = []
        self._rows = rows
        now = asyncio.get_running_loop().time
        self.quota = Quota()
        self.retry = Retry(
            self.script, limits or RetryLimits(), self._rest, now, lambda: chance, self.events.append, self.quota
        )

    def _answer(self, sent: Sent) -> tuple[float, Reply | Failure]:
        return 1.0, self._rows[sent.name][sent.attempt - 1]

    async def _rest(self, delay_s: float) -> None:
        self.rests.append(delay_s)
        await asyncio.sleep(delay_s)

    async def one(self, name: str, trace: Trace | None = None) -> Reply | Failure:
        try:
            return await self.retry(Request(name), trace or Trace())
        except CallFailed as failed:
            return failed.failure


@pytest.mark.parametrize(
    ("outcomes", "tries"),
    [
        ([PONG], 1),
        ([BUSY, PONG], 2),
        ([BUSY, OTHER, BUSY, OTHER, PONG], 5),
        ([BUSY, BUSY, BUSY, BUSY, OTHER], 5),
        ([BAD], 1),
        ([BUSY, BAD], 2),
        ([CUT, PONG], 2),
        ([CUT, CUT], 2),  # may have been billed twice: asked again once
        ([CUT, BUSY, CUT], 3),
        ([LIMITED] * 30 + [PONG], 31),  # the rate limit's budget, not the row's
        ([LIMITED] * 30 + [BUSY] * 4 + [PONG], 35),
        ([LIMITED] * 30 + [BUSY] * 5, 35),
    ],
)
def test_tries(virtually: Virtually, outcomes: list[Reply | Failure], tries: int) -> None:
    async def main() -> None:
        bench, trace = Bench(a=outcomes), Trace()
        assert await bench.one("a", trace) is outcomes[-1]  # the last failure, not the first
        assert len(trace.attempts) == len(bench.script.sent) == tries

    virtually(main())


def test_a_first_answer_that_is_good_rests_nowhere(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(a=[PONG])
        assert await bench.one("a") is PONG
        assert not bench.rests and not bench.events

    virtually(main())


def test_backoff_doubles_and_retry_after_is_never_cut_short(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(a=[BUSY, BUSY, replace(BUSY, retry_after_s=7.0), BUSY, PONG])
        assert await bench.one("a") is PONG
        assert bench.rests == [0.25, 0.5, 7.0 + 1.0, 2.0]
        assert bench.script.times_s == [0.0, 1.25, 2.75, 11.75, 14.75]

    virtually(main())


def test_each_failed_try_is_told_with_the_pause_before_the_next(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(a=[BUSY, LIMITED, BAD])
        await bench.one("a")
        assert bench.events == [
            AttemptFailed(BUSY, 0.25, "overloaded, attempt 2 of 5"),
            AttemptFailed(LIMITED, 0.0, "waits at the gate"),
            AttemptFailed(BAD, None, "bad_request is not retryable"),
        ]

    virtually(main())


def test_the_attempts_of_rows_never_mix(virtually: Virtually) -> None:
    """200 rows at once, each with failures of its own, get their own answer or their own last failure."""
    rows: dict[str, list[Reply | Failure]] = {}
    for number in range(200):
        failures: list[Reply | Failure] = [replace(BUSY, message=f"{number}/{step}") for step in range(number % 6)]
        rows[f"r{number}"] = failures if number % 6 == 5 else [*failures, replace(PONG, output=str(number))]

    async def main() -> None:
        bench = Bench(**rows)
        bench.quota.tokens = 10_000  # not what is looked at here
        traces = [Trace() for _ in rows]
        outcomes = await asyncio.gather(*(bench.one(name, trace) for name, trace in zip(rows, traces, strict=True)))
        for (_, expected), outcome, trace in zip(rows.items(), outcomes, traces, strict=True):
            assert outcome is expected[-1] and len(trace.attempts) == len(expected)
            assert [attempt.failure for attempt in trace.attempts if attempt.failure] == [
                step for step in expected if isinstance(step, Failure)
            ]

    virtually(main())


def test_no_try_begins_after_the_rows_deadline(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(RetryLimits(attempts=100, base_s=4.0), a=[BUSY] * 100)
        assert await bench.one("a", Trace(deadline_s=10.0)) is BUSY
        assert max(bench.script.times_s) < 10.0 and len(bench.script.sent) == 3
        assert bench.events[-1] == AttemptFailed(BUSY, None, "the row's deadline")

    virtually(main())


def test_a_rate_limit_that_lasts_longer_than_max_wait_ends_the_row(virtually: Virtually) -> None:
    async def main() -> None:
        bench, trace = Bench(RetryLimits(max_wait_s=20.0), a=[LIMITED] * 100), Trace(limited_since_s=1.0)
        assert await bench.one("a", trace) is LIMITED
        assert bench.script.times_s[-1] == pytest.approx(21.0)

    virtually(main())


def test_stopped_while_resting_leaves_the_row_pending(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(a=[BUSY, PONG])

        async def stopped(delay_s: float) -> None:
            raise Stopped

        bench.retry._rest = stopped
        with pytest.raises(Stopped):
            await bench.one("a")
        assert len(bench.script.sent) == 1

    virtually(main())


@pytest.mark.parametrize("at_s", [0.5, 1.1, 1.5])
def test_cancelling_passes_through(virtually: Virtually, at_s: float) -> None:
    """In the first try, in the rest after it, in the second try."""

    async def main() -> None:
        bench = Bench(a=[BUSY, BUSY, PONG])
        task = asyncio.create_task(bench.one("a"))
        await asyncio.sleep(at_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    virtually(main())


@pytest.mark.parametrize("tries_before", [0, 1])
def test_a_bug_below_is_not_retried_and_not_hidden(virtually: Virtually, tries_before: int) -> None:
    async def main() -> None:
        bench = Bench(a=[BUSY] * tries_before)
        with pytest.raises(IndexError):
            await bench.one("a")
        assert len(bench.script.sent) == tries_before + 1

    virtually(main())
