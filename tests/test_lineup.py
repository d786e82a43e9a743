"""The rows at hand in order, in virtual time: under a scheduler, with calls that answer by a script."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from scripted import BAD, PONG

from llmbatch import lineup
from llmbatch.lineup import AHEAD_FOR_PREFIXES_BYTES, AHEAD_FOR_TENANTS_BYTES, ROW_BYTES, Lineup
from llmbatch.records import Attempt, CallFailed, Failure, Reply, Request, Skipped, Trace
from llmbatch.rules.prefix import PREFIX_CHARS
from llmbatch.rules.warmth import LEAD_S
from llmbatch.scheduler import Job, Outcome, Scheduler

Virtually = Callable[[Awaitable[Any]], Any]


def row(name: str, tenant: str | None = None, prefix: str = "", **more: Any) -> Job:
    """A row that says ``name``, behind a long prefix if it has one."""
    said = (prefix * PREFIX_CHARS)[:PREFIX_CHARS]
    messages = [{"role": "system", "content": said}, {"role": "user", "content": name}]
    return Job(0, name, name, Request("m", messages), tenant=tenant, **more)


def rows(count: int, tenant: str | None = None, prefix: str = "") -> list[Job]:
    return [row(f"{tenant or prefix or 'row'} {number}", tenant, prefix) for number in range(1, count + 1)]


class Feed:
    """Gives ``jobs`` so many ``at_once``, each time after ``wait_s``; then raises, waits for ever, or ends."""

    def __init__(self, jobs: Sequence[Job], at_once: int = 100, wait_s: float = 0.0, end: Any = None) -> None:
        self._jobs, self._at_once, self._wait_s, self._end = list(jobs), at_once, wait_s, end
        self._ready: list[Job] = []
        self.taken = 0

    def take(self) -> Job | None:
        if not self._ready:
            return None
        self.taken += 1
        return self._ready.pop(0)

    async def refill(self) -> bool:
        if self._wait_s:
            await asyncio.sleep(self._wait_s)
        self._ready, self._jobs = self._jobs[: self._at_once], self._jobs[self._at_once :]
        if self._ready or self._end is None:
            return bool(self._ready)
        if isinstance(self._end, Exception):
            raise self._end
        await asyncio.Event().wait()
        raise AssertionError


@dataclass(frozen=True)
class Sent:
    name: str
    at_s: float
    begun_before: tuple[str, ...]


class Bench:
    """A scheduler with ``width`` places; ``answer`` says of each row how long it takes, and what comes of it."""

    def __init__(
        self,
        feed: Feed,
        width: int = 5,
        answer: Callable[[str], tuple[float, Reply | Failure | BaseException]] = lambda name: (1.0, PONG),
        begins_s: float | None = None,
        **limits: Any,
    ) -> None:
        self.now = asyncio.get_running_loop().time
        self._answer, self._begins_s, self._width = answer, begins_s, width
        self.feed = feed
        self.lineup = Lineup(feed, limits.get("rpm"), limits.get("concurrency"), self.now)
        self.scheduler = Scheduler(self.lineup, self.lineup.watching(self.finish))
        self.sent: list[Sent] = []
        self.ended: dict[str, float] = {}
        self.under_way = self.most_under_way = 0

    async def run(self) -> None:
        async with self.lineup:
            await self.scheduler.run(self.call, lambda: self._width)

    def stop(self) -> None:
        self.scheduler.stop()
        self.lineup.stop()

    async def call(self, request: Request, trace: Trace) -> Reply:
        name = str(request.messages[-1]["content"])
        self.sent.append(Sent(name, self.now(), tuple(self.ended)))
        trace.attempts.append(Attempt(self.now()))
        latency_s, outcome = self._answer(name)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        if self._begins_s is not None:
            await asyncio.sleep(self._begins_s)
            if trace.began is not None:
                trace.began()
            latency_s -= self._begins_s
        await asyncio.sleep(latency_s)
        self.under_way -= 1
        if isinstance(outcome, Failure):
            raise CallFailed(outcome)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def finish(self, job: Job, outcome: Outcome, trace: Trace) -> None:
        assert job.id not in self.ended, "a row ends once"
        self.ended[str(job.id)] = self.now()

    @property
    def names(self) -> list[str]:
        return [sent.name for sent in self.sent]

    def times_of(self, tenant: str) -> list[float]:
        return [sent.at_s for sent in self.sent if sent.name.startswith(tenant)]


# Rows that ask for no order


def test_rows_that_ask_for_no_order_pass_through_as_they_come_and_nothing_is_read_ahead(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(Feed(rows(1_000), at_once=300), width=10)
        reading: list[int] = []
        bench.scheduler._call = bench.call
        taken = bench.lineup.take

        def take() -> Job | None:
            reading.append(bench.feed.taken - len(bench.sent))
            return taken()

        bench.lineup.take = take  # type: ignore[method-assign]
        await bench.run()
        assert bench.names == [f"row {number}" for number in range(1, 1_001)]
        assert max(reading) <= 1 and bench.lineup.at_hand == 0
        assert bench.now() == 100.0

    virtually(main())


def test_rows_with_long_beginnings_that_all_differ_keep_their_order_and_wait_for_nobody(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(Feed([row(f"{number}", prefix=f"{number} ") for number in range(100)]), width=10)
        await bench.run()
        assert bench.names == [f"{number}" for number in range(100)]
        assert bench.now() == 10.0

    virtually(main())


def test_a_row_that_is_prepared_later_has_no_prefix(virtually: Virtually) -> None:
    async def prepared() -> Request:
        return row("made", prefix="p").request

    async def main() -> None:
        bench = Bench(Feed([replace(one, prepare=prepared) for one in rows(10, prefix="p")]), width=5)
        await bench.run()
        assert bench.now() == 2.0

    virtually(main())


# Prefixes


def test_the_first_of_a_prefix_goes_alone_and_the_others_fill_the_window(virtually: Virtually) -> None:
    """One latency more than without the order, and no pause after it."""

    async def main() -> None:
        bench = Bench(Feed(rows(101, prefix="p")), width=10)
        await bench.run()
        assert bench.times_of("p")[:3] == [0.0, 1.0, 1.0]
        assert bench.now() == 11.0 and bench.most_under_way == 10

    virtually(main())


def test_other_rows_go_on_while_the_first_is_waited_for(virtually: Virtually) -> None:
    async def main() -> None:
        jobs = [one for pair in zip(rows(30, prefix="p"), rows(30), strict=True) for one in pair]
        bench = Bench(Feed(jobs), width=6)
        await bench.run()
        assert bench.times_of("p")[:2] == [0.0, 1.0]
        assert bench.times_of("row")[:5] == [0.0] * 5
        assert bench.now() == 10.0  # as without the order

    virtually(main())


def test_one_prefix_after_the_other_leaves_no_pause_between_them(virtually: Virtually) -> None:
    """The next leader goes while rows of the last prefix are still there to be sent."""

    async def main() -> None:
        jobs = [one for prefix in "abcde" for one in rows(50, prefix=prefix)]
        bench = Bench(Feed(jobs), width=10)
        await bench.run()
        assert bench.now() <= 26.0  # 25 is the least
        for prefix in "abcde":
            first, *others = [sent for sent in bench.sent if sent.name.startswith(prefix)]
            assert all(first.name in sent.begun_before for sent in others)

    virtually(main())


def test_when_a_streamed_answer_begins_the_others_follow(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(Feed(rows(3, prefix="p")), answer=lambda name: (10.0, PONG), begins_s=0.5)
        await bench.run()
        assert bench.times_of("p") == [0.0, 0.5, 0.5]

    virtually(main())


@pytest.mark.parametrize("outcome", [BAD, Skipped()], ids=["failed", "left out"])
def test_a_leader_that_gets_no_answer_holds_up_nobody(virtually: Virtually, outcome: Any) -> None:
    async def main() -> None:
        bench = Bench(Feed(rows(7, prefix="p")), answer=lambda name: (1.0, outcome if name == "p 1" else PONG))
        await bench.run()
        assert bench.times_of("p")[1:] == [1.0] * 5 + [2.0] and len(bench.ended) == 7

    virtually(main())


def test_a_leader_that_rests_or_hangs_is_not_waited_for_without_end(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(Feed(rows(3, prefix="p")), answer=lambda name: (900.0 if name == "p 1" else 1.0, PONG))
        await bench.run()
        assert bench.times_of("p") == [0.0, LEAD_S, LEAD_S] and bench.now() == 900.0

    virtually(main())


def test_rows_that_come_slowly_are_sent_as_they_come(virtually: Virtually) -> None:
    """Whoever waits for the input is woken by what is at hand, and the other way round."""

    async def main() -> None:
        bench = Bench(Feed(rows(6, prefix="p"), at_once=1, wait_s=3.0), answer=lambda name: (4.0, PONG))
        await bench.run()
        assert bench.times_of("p") == [3.0, 7.0, 9.0, 12.0, 15.0, 18.0]

    virtually(main())


# Tenants


def test_a_small_tenant_ends_early(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(Feed(rows(2_000, "big") + rows(10, "small")), width=10)
        await bench.run()
        assert bench.ended["small 10"] <= 10.0
        assert bench.now() == 201.0

    virtually(main())


def test_a_limit_of_requests_per_minute_holds_for_each_tenant(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(Feed([*rows(40, "a"), *rows(5, "b"), *rows(3)]), width=10, rpm=60)
        await bench.run()
        for tenant, count in (("a", 40), ("b", 5), ("row", 3)):
            times = bench.times_of(tenant)
            assert len(times) == count
            assert times[-1] == pytest.approx((count - 1) * 60.05 / 60, abs=0.1)
        assert bench.now() == pytest.approx(40.0, abs=0.2)

    virtually(main())


def test_a_limit_of_rows_in_flight_holds_for_each_tenant(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(Feed([*rows(20, "a"), *rows(8, "b")]), width=10, concurrency=2)
        await bench.run()
        assert bench.most_under_way == 4
        assert bench.times_of("b") == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
        assert bench.now() == 10.0

    virtually(main())


def test_a_row_that_rests_counts_for_its_tenant(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(Feed([*rows(3, "a"), *rows(3, "b")]), concurrency=1)
        call = bench.call

        async def rests(request: Request, trace: Trace) -> Reply:
            if request.messages[-1]["content"] == "a 1":
                await bench.scheduler.rest(50.0)
            return await call(request, trace)

        bench.call = rests  # type: ignore[method-assign]
        await bench.run()
        assert bench.times_of("a") == [50.0, 51.0, 52.0]
        assert bench.times_of("b") == [0.0, 1.0, 2.0]

    virtually(main())


def test_when_all_are_at_their_limits_a_stop_is_not_held_up(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(Feed(rows(100, "a")), rpm=1)
        asyncio.get_running_loop().call_later(30.0, bench.stop)
        await bench.run()
        assert bench.now() == 30.0 and len(bench.ended) == 1

    virtually(main())


def test_a_stop_does_not_wait_for_an_input_that_is_silent(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(Feed(rows(3, "a"), end="silence"))
        asyncio.get_running_loop().call_later(30.0, bench.stop)
        await bench.run()
        assert bench.now() == 30.0 and len(bench.ended) == 3
        assert len(asyncio.all_tasks()) == 1

    virtually(main())


def test_what_goes_wrong_with_the_input_is_told_after_the_rows_before_it(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(Feed(rows(20, "a"), end=ValueError("torn")))
        with pytest.raises(ValueError, match="torn"):
            await bench.run()
        assert len(bench.ended) == 20

    virtually(main())


def test_what_goes_wrong_with_the_input_is_told_though_the_run_was_stopped(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(Feed(rows(20, "a"), end=ValueError("torn")), concurrency=1)
        asyncio.get_running_loop().call_later(3.5, bench.scheduler.stop)
        with pytest.raises(ValueError, match="torn"):
            await bench.run()
        assert len(bench.ended) == 4

    virtually(main())


# Bounds


@pytest.mark.parametrize(
    ("tenant", "prefix", "most_bytes"),
    [("a", "", AHEAD_FOR_TENANTS_BYTES), (None, "p", AHEAD_FOR_PREFIXES_BYTES)],
    ids=["tenants", "prefixes"],
)
def test_what_is_read_ahead_is_bounded(virtually: Virtually, tenant: str | None, prefix: str, most_bytes: int) -> None:
    """By all that is kept of the rows; and at the bound reading goes on as rows are sent."""

    async def main() -> None:
        kept_bytes = 2**20
        jobs = [replace(one, kept_bytes=kept_bytes) for one in rows(100, tenant, prefix)]
        bench = Bench(Feed(jobs), width=1)
        at_hand: list[int] = []
        finish = bench.finish

        def noted(job: Job, outcome: Outcome, trace: Trace) -> None:
            at_hand.append(bench.lineup.at_hand)
            finish(job, outcome, trace)

        bench.scheduler._finish = bench.lineup.watching(noted)
        await bench.run()
        assert len(bench.ended) == 100
        assert most_bytes / 2**20 * 0.8 < max(at_hand) <= most_bytes / kept_bytes + 1

    virtually(main())


def test_short_rows_are_bounded_too(virtually: Virtually, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineup, "AHEAD_FOR_TENANTS_BYTES", 2**20)

    async def main() -> None:
        most = 2**20 // ROW_BYTES
        bench = Bench(Feed(rows(most + 1_000, "a"), at_once=500), width=1, answer=lambda name: (60.0, PONG))
        asyncio.get_running_loop().call_later(30.0, bench.stop)
        await bench.run()
        assert most * 0.7 < bench.lineup.at_hand <= most

    virtually(main())
