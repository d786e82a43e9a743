"""A slow request asked a second time, in virtual time: who wins, what is told, and that nothing is left over."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from scripted import BAD, BUSY, CUT, LIMITED, PONG, Script, Sent

from llmbatch.calls.hedge import ASKED_TWICE, Hedge
from llmbatch.calls.lane import Account
from llmbatch.calls.limit import ABANDONED, Limiter
from llmbatch.events import AttemptFailed, Event, Hedged
from llmbatch.records import CallFailed, Failure, Reply, Request, Result, Stopped, Trace
from llmbatch.rules.hedge import COST, Hedging
from llmbatch.rules.quota import Quota
from llmbatch.rules.window import FixedWindow
from llmbatch.scheduler import Job, folded

Virtually = Callable[[Awaitable[Any]], Any]
Plan = list[tuple[float, Reply | Failure]]
FIRST = replace(PONG, output="first")
SECOND = replace(PONG, output="second")
SLOW_S = 2.0


class Wire(Script):
    """Notes in the trace what the real one does: the id of each request, and that it was given up."""

    async def __call__(self, request: Request, trace: Trace, /) -> Reply:
        index, name = len(trace.attempts), f"{request.params['name']}-{len(self.sent) + 1}"
        try:
            return await super().__call__(request, trace)
        except asyncio.CancelledError:
            trace.attempts[index].failure = replace(ABANDONED, request_id=name)
            raise
        finally:
            trace.attempts[index].request_id = name


class Bench:
    """A hedge before a limiter before a script: a list for each row, of its requests in order. Make it in the loop."""

    def __init__(
        self, policy: Hedging | None = None, *, window: int = 100, slack: Callable[[], bool] | None = None, **rows: Plan
    ) -> None:
        self._rows = rows
        self._asked: dict[str, int] = defaultdict(int)
        self.wire = Wire(self._answer)
        self.events: list[Event] = []
        self.now = asyncio.get_running_loop().time
        self.limiter = Limiter(
            [Account("here", self.wire)],
            lambda: FixedWindow(window),
            self.now,
            lambda: 0.5,
            self.events.append,
            Quota(),
        )
        self.policy = policy or Hedging(SLOW_S)
        self.hedge = Hedge(self.limiter, self.policy, slack or self.limiter.slack, self.now, self.events.append)

    def _answer(self, sent: Sent) -> tuple[float, Reply | Failure]:
        self._asked[sent.name] += 1
        return self._rows[sent.name][self._asked[sent.name] - 1]

    async def one(self, name: str, trace: Trace | None = None) -> Reply | Failure:
        try:
            return await self.hedge(Request("m", params={"name": name}), trace or Trace())
        except CallFailed as failed:
            return failed.failure

    async def result(self, name: str) -> Result:
        """As it is written, at the moment at which the row has its answer."""
        trace = Trace()
        outcome = await self.one(name, trace)
        return folded(Job(1, None, "", Request("m", params={"name": name})), outcome, trace)

    async def nothing_is_left(self) -> None:
        await self.hedge.settled()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert self.limiter.in_flight == self.wire.in_flight == self.hedge.twice == 0
        assert not self.hedge._once and self.hedge._rows == 0

    @property
    def lost(self) -> list[tuple[str, bool]]:
        """The failures that were told, and whether as one of two."""
        return [(event.failure.type, event.hedged) for event in self.events if isinstance(event, AttemptFailed)]

    @property
    def hedged(self) -> list[bool]:
        return [event.won for event in self.events if isinstance(event, Hedged)]


def test_what_is_answered_in_time_is_asked_once(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(a=[(SLOW_S - 0.1, FIRST)])
        result = await bench.result("a")
        assert result.reply is FIRST and result.attempts == 1 and len(bench.wire.sent) == 1
        assert not bench.events
        await bench.nothing_is_left()

    virtually(main())


def test_second_wins(virtually: Virtually) -> None:
    """Its row is as late as both together, and counts the first one as perhaps paid for."""

    async def main() -> None:
        bench = Bench(a=[(60.0, FIRST), (1.0, SECOND)])
        result = await bench.result("a")
        assert result.reply is SECOND
        assert bench.now() == pytest.approx(SLOW_S + 1.0, abs=0.02)
        assert result.latency_s == pytest.approx(bench.now())
        assert (result.attempts, result.ambiguous) == (2, 1)
        assert (result.request_id, result.request_ids) == ("a-2", ("a-1", "a-2"))
        assert bench.lost == [("abandoned", True)] and bench.hedged == [True]
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
        await bench.nothing_is_left()

    virtually(main())


def test_first_wins_and_does_not_wait_for_the_second_to_be_gone(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(a=[(3.0, FIRST), (60.0, SECOND)])
        result = await bench.result("a")
        assert result.reply is FIRST and bench.now() == result.latency_s == 3.0
        assert bench.wire.in_flight == 1 and not bench.events  # the line is written; only then the loser goes
        assert (result.attempts, result.ambiguous) == (2, 1)
        assert (result.request_id, result.request_ids) == ("a-1", ("a-1",))
        await bench.hedge.settled()
        assert bench.lost == [("abandoned", True)] and bench.hedged == [False]
        await bench.nothing_is_left()

    virtually(main())


def test_what_was_given_up_keeps_the_bound_that_the_wire_noted(virtually: Virtually) -> None:
    async def main() -> None:
        bench, trace = Bench(a=[(3.0, FIRST), (60.0, SECOND)]), Trace()
        await bench.one("a", trace)
        await bench.nothing_is_left()
        (told,) = [event.failure for event in bench.events if isinstance(event, AttemptFailed)]
        assert told.request_id == "a-2" and trace.attempts[0].failure is told

    virtually(main())


@pytest.mark.parametrize(
    ("first", "second", "outcome", "ended_s", "failures", "told"),
    [
        ((3.0, CUT), (4.0, SECOND), SECOND, 6.0, [CUT, None], [CUT]),
        ((3.0, BAD), (4.0, SECOND), SECOND, 6.0, [BAD, None], [BAD]),
        ((9.0, FIRST), (4.0, BUSY), FIRST, 9.0, [BUSY, None], [BUSY]),
        ((3.0, CUT), (4.0, BUSY), BUSY, 6.0, [CUT, BUSY], [CUT]),  # the last one is told by the retry
        ((9.0, CUT), (4.0, BUSY), CUT, 9.0, [BUSY, CUT], [BUSY]),
        ((3.0, BUSY), (4.0, LIMITED), LIMITED, 6.0, [BUSY, LIMITED], [BUSY]),
        ((1.0, BUSY), (4.0, SECOND), BUSY, 1.0, [BUSY], []),  # before it was slow
    ],
)
def test_if_one_fails_the_other_is_waited_for(
    virtually: Virtually,
    first: tuple[float, Reply | Failure],
    second: tuple[float, Reply | Failure],
    outcome: Reply | Failure,
    ended_s: float,
    failures: list[Failure | None],
    told: list[Failure],
) -> None:
    async def main() -> None:
        bench, trace = Bench(a=[first, second]), Trace()
        assert await bench.one("a", trace) is outcome
        assert bench.now() == pytest.approx(ended_s, abs=0.02)
        assert [attempt.failure for attempt in trace.attempts] == failures
        assert [event for event in bench.events if isinstance(event, AttemptFailed)] == [
            AttemptFailed(failure, None, ASKED_TWICE, hedged=True) for failure in told
        ]
        await bench.nothing_is_left()
        assert bench.hedged == ([outcome is SECOND] if len(bench.wire.sent) == 2 else [])

    virtually(main())


def test_a_rate_limit_that_the_second_met_last_counts_for_the_row(virtually: Virtually) -> None:
    async def main() -> None:
        bench, trace = Bench(a=[(3.0, CUT), (4.0, LIMITED)]), Trace()
        assert await bench.one("a", trace) is LIMITED
        assert trace.limited_since_s == pytest.approx(6.0, abs=0.02)

    virtually(main())


@pytest.mark.parametrize(
    ("at_s", "lost", "hedged"),
    [
        (1.0, [("abandoned", False)], []),
        (4.0, [("abandoned", False), ("abandoned", True)], [False]),  # one of the two may have been paid twice
        (6.0, [("disconnected", True), ("abandoned", False)], [False]),  # the first one has failed
    ],
)
def test_giving_up_a_row_gives_up_both(
    virtually: Virtually, at_s: float, lost: list[tuple[str, bool]], hedged: list[bool]
) -> None:
    async def main() -> None:
        bench = Bench(a=[(5.0, CUT), (60.0, SECOND)])
        row = asyncio.create_task(bench.one("a"))
        await asyncio.sleep(at_s)
        row.cancel()
        with pytest.raises(asyncio.CancelledError):
            await row
        await bench.nothing_is_left()
        assert bench.lost == lost and bench.hedged == hedged

    virtually(main())


@pytest.mark.parametrize("answers", ["first fails", "first is slow"])
@pytest.mark.parametrize("sooner", [True, False])
def test_an_answer_that_comes_together_with_the_end_is_handed_over_first(
    virtually: Virtually, answers: str, sooner: bool
) -> None:
    """Two cancellations between two steps of a task are thrown as one: the other one must not be lost."""

    async def main() -> None:
        first = (3.0, CUT) if answers == "first fails" else (60.0, FIRST)
        bench = Bench(a=[first, (2.0, SECOND)])
        handed_over = []

        async def worker() -> None:
            handed_over.append(await bench.one("a"))
            await asyncio.sleep(1000.0)

        row = asyncio.create_task(worker())
        decide = bench.hedge._decide

        def with_the_end(*args: Any) -> None:
            if sooner:
                row.cancel()
            decide(*args)
            if not sooner:
                row.cancel()

        bench.hedge._decide = with_the_end  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await row
        assert handed_over == [SECOND] and bench.now() == pytest.approx(4.0, abs=0.02)
        await bench.nothing_is_left()
        assert len(bench.lost) == 1 and bench.hedged == [True]

    virtually(main())


@pytest.mark.parametrize("stubborn", ["a-1", "a-2"])
def test_a_loser_that_is_answered_all_the_same_is_counted_once(virtually: Virtually, stubborn: str) -> None:
    async def main() -> None:
        bench = Bench(a=[(3.0 if stubborn == "a-2" else 60.0, FIRST), (60.0 if stubborn == "a-2" else 1.0, SECOND)])
        wire = bench.limiter.accounts[0].call

        async def paid(request: Request, trace: Trace, /) -> Reply:
            name = f"a-{len(bench.wire.sent) + 1}"
            try:
                return await wire(request, trace)
            except asyncio.CancelledError:
                if name != stubborn:
                    raise
                trace.attempts[-1].failure = None
                return PONG

        bench.limiter.accounts[0].call = paid
        result = await bench.result("a")
        assert result.reply is (FIRST if stubborn == "a-2" else SECOND)
        assert (result.attempts, result.ambiguous) == (2, 1)
        await bench.nothing_is_left()
        assert bench.lost == [("abandoned", True)] and len(bench.hedged) == 1

    virtually(main())


def test_a_time_limit_that_meets_the_second_answer_loses(virtually: Virtually) -> None:
    """calls/deadlines.py cancels the first one in the same step of the loop, and the wire makes a failure of it."""

    async def main() -> None:
        bench = Bench(a=[(60.0, FIRST), (1.0, SECOND)])
        wire = bench.limiter.accounts[0].call

        async def timed(request: Request, trace: Trace, /) -> Reply:
            try:
                return await wire(request, trace)
            except asyncio.CancelledError:
                trace.attempts[-1].failure = CUT
                raise CallFailed(CUT) from None

        bench.limiter.accounts[0].call = timed
        assert await bench.one("a") is SECOND
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
        assert bench.lost == [(CUT.type, True)]
        await bench.nothing_is_left()

    virtually(main())


def test_a_run_that_stops_waits_for_both_and_asks_nothing_twice_any_more(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(a=[(60.0, FIRST), (5.0, SECOND)], b=[(9.0, FIRST), (1.0, SECOND)])
        first = asyncio.create_task(bench.one("a"))
        await asyncio.sleep(3.0)
        other = asyncio.create_task(bench.one("b"))
        await asyncio.sleep(1.0)
        bench.limiter.close()
        assert await first is SECOND and bench.now() == pytest.approx(7.0, abs=0.02)
        assert await other is FIRST and len(bench.wire.sent) == 3
        with pytest.raises(Stopped):
            await bench.one("c")
        await bench.nothing_is_left()

    virtually(main())


def test_a_second_one_that_is_not_let_in_any_more_is_no_failure(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(a=[(9.0, FIRST)], slack=lambda: True)
        row = asyncio.create_task(bench.result("a"))
        await asyncio.sleep(1.0)
        bench.limiter.close()
        result = await row
        assert result.reply is FIRST and result.attempts == 1
        assert not bench.events and [bench.policy.take() for _ in range(6)] == [True] * 5 + [False]
        await bench.nothing_is_left()

    virtually(main())


def test_who_waits_for_its_turn_is_not_slow(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(window=1, a=[(10.0, FIRST)], b=[(1.0, FIRST)], slack=lambda: True)
        assert await asyncio.gather(bench.one("a"), bench.one("b")) == [FIRST, FIRST]
        assert [sent.name for sent in bench.wire.sent] == ["a", "b"]
        await bench.nothing_is_left()

    virtually(main())


def test_a_second_one_in_the_queue_goes_when_the_first_is_answered(virtually: Virtually) -> None:
    """Its budget is given back: nothing was sent."""

    async def main() -> None:
        bench = Bench(window=1, a=[(10.0, FIRST)])
        row = asyncio.create_task(bench.result("a"))
        await asyncio.sleep(3.0)
        assert bench.hedge.twice == 1 and len(bench.wire.sent) == 1
        result = await row
        assert result.attempts == 1 and bench.hedge.twice == 0
        await bench.nothing_is_left()
        assert not bench.events and [bench.policy.take() for _ in range(6)] == [True] * 5 + [False]

    virtually(main())


def test_a_first_one_that_fails_does_not_wait_for_one_in_the_queue(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(window=1, a=[(10.0, CUT)])
        assert await bench.one("a") is CUT and bench.now() == 10.0
        await bench.nothing_is_left()

    virtually(main())


def test_a_full_window_gives_the_next_free_place_to_the_slow_one(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(window=2, a=[(60.0, FIRST), (1.0, SECOND)], b=[(3.0, FIRST)])
        row = asyncio.create_task(bench.one("a"))
        await bench.one("b")
        assert await row is SECOND and bench.now() == pytest.approx(4.0, abs=0.1)
        assert bench.limiter.peak_in_flight == 2
        await bench.nothing_is_left()

    virtually(main())


def test_without_room_it_is_looked_again_later(virtually: Virtually) -> None:
    async def main() -> None:
        room_at_s = 10.0
        bench = Bench(a=[(60.0, FIRST), (1.0, SECOND)], slack=lambda: bench.now() >= room_at_s)
        assert await bench.one("a") is SECOND and bench.now() == pytest.approx(11.0, abs=0.1)
        await bench.nothing_is_left()

    virtually(main())


def test_room_that_is_gone_when_the_second_one_starts(virtually: Virtually) -> None:
    """Between the look and its task another one was quicker: it does not go, and is not paid for."""

    async def main() -> None:
        asked: list[float] = []

        def slack() -> bool:
            asked.append(bench.now())
            return len(asked) != 2

        bench = Bench(a=[(60.0, FIRST), (1.0, SECOND)], slack=slack)
        assert await bench.one("a") is SECOND and len(asked) == 4
        assert [bench.policy.take() for _ in range(5)] == [True] * 4 + [False]
        await bench.nothing_is_left()

    virtually(main())


def test_a_streamed_answer_that_has_begun_is_not_asked_again(virtually: Virtually) -> None:
    async def main() -> None:
        bench, trace = Bench(a=[(60.0, FIRST)]), Trace()
        row = asyncio.create_task(bench.one("a", trace))
        await asyncio.sleep(1.0)
        trace.attempts[-1].first_token_s = 1.0
        assert await row is FIRST and len(bench.wire.sent) == 1
        await bench.nothing_is_left()

    virtually(main())


def test_the_first_token_of_the_second_one_is_from_the_first_sending(virtually: Virtually) -> None:
    async def main() -> None:
        bench, trace = Bench(a=[(60.0, FIRST), (5.0, SECOND)]), Trace()
        row = asyncio.create_task(bench.one("a", trace))
        await asyncio.sleep(3.0)
        (pair,) = [task.get_coro().cr_frame.f_locals["pair"] for task in bench.hedge._tasks]  # type: ignore[union-attr]
        pair.second.attempts[-1].first_token_s = 0.5
        assert await row is SECOND
        assert trace.attempts[-1].first_token_s == pytest.approx(SLOW_S + 0.5, abs=0.02)
        await bench.nothing_is_left()

    virtually(main())


def test_a_mistake_in_the_second_one_is_the_rows(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(a=[(60.0, FIRST)])  # the script has no second answer
        with pytest.raises(IndexError):
            await bench.one("a")
        await bench.nothing_is_left()

    virtually(main())


def test_a_mistake_after_the_row_has_left_is_raised_at_the_end(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench(a=[(3.0, FIRST), (60.0, SECOND)])
        wire = bench.limiter.accounts[0].call

        async def clumsy(request: Request, trace: Trace, /) -> Reply:
            try:
                return await wire(request, trace)
            except asyncio.CancelledError:
                raise ZeroDivisionError from None

        bench.limiter.accounts[0].call = clumsy
        assert await bench.one("a") is FIRST
        with pytest.raises(ZeroDivisionError):
            await bench.hedge.settled()

    virtually(main())


def test_a_stranger_who_ends_the_second_one_leaves_the_row_its_own_failure(virtually: Virtually) -> None:
    async def main() -> None:
        bench, trace = Bench(a=[(3.0, CUT), (60.0, SECOND)]), Trace()
        row = asyncio.create_task(bench.one("a", trace))
        await asyncio.sleep(4.0)
        for task in bench.hedge._tasks:
            task.cancel()
        assert await row is CUT
        assert [attempt.failure.type for attempt in trace.attempts if attempt.failure] == ["abandoned", CUT.type]
        await bench.nothing_is_left()

    virtually(main())


def test_after_a_standstill_the_sockets_are_read_before_anything_is_asked_again(virtually: Virtually) -> None:
    """The answer has been waiting while the process stood still; the look that comes late is not believed."""

    async def main() -> None:
        bench = Bench(a=[(1.255, FIRST)])
        stood_still_s = 0.0
        bench.hedge._clock = lambda: bench.now() + stood_still_s
        row = asyncio.create_task(bench.one("a"))
        await asyncio.sleep(1.2)  # the next look is at 1.25
        stood_still_s = 3600.0
        assert await row is FIRST and len(bench.wire.sent) == 1
        await bench.nothing_is_left()

    virtually(main())


def test_the_time_is_learnt(virtually: Virtually) -> None:
    """50 answers of a second each; before them nothing is slow, then what takes longer."""

    async def main() -> None:
        rows: dict[str, Plan] = {f"r{number}": [(1.0, FIRST)] for number in range(50)}
        bench = Bench(Hedging(), **rows, early=[(3.0, FIRST)], a=[(60.0, FIRST), (1.0, SECOND)])
        await bench.one("early")
        await asyncio.gather(*map(bench.one, rows))
        assert len(bench.wire.sent) == 51
        began_s = bench.now()
        assert await bench.one("a") is SECOND
        assert bench.now() - began_s == pytest.approx(2.0, rel=0.05)
        await bench.nothing_is_left()

    virtually(main())


@pytest.mark.parametrize("policy", [Hedging, lambda: Hedging(2.0)])
def test_at_most_one_of_twenty_of_ten_thousand_requests(virtually: Virtually, policy: Callable[[], Hedging]) -> None:
    """Every tenth is slow, twice as many as may be asked again; and no task is left."""

    async def main() -> None:
        names = [f"r{number}" for number in range(10_000)]
        bench = Bench(policy(), **{n: [(1.0 if i % 10 else 20.0, FIRST), (1.0, SECOND)] for i, n in enumerate(names)})
        left = iter(names)

        async def worker() -> None:
            for name in left:
                await bench.one(name)

        await asyncio.gather(*(worker() for _ in range(90)))
        await bench.nothing_is_left()
        extra = len(bench.wire.sent) - 10_000
        assert extra == len(bench.hedged)
        assert 400 < extra <= 10_000 / COST

    virtually(main())


@pytest.mark.parametrize("seed", range(40))
def test_books_balance_whatever_happens_at_the_same_moment(virtually: Virtually, seed: int) -> None:
    """Answers, failures, looks and the end of rows on a grid of quarters of a second: much comes together."""

    async def main() -> None:
        chance = random.Random(seed)

        def times() -> float:
            return chance.choice([0.25, 1.0, 1.75, 2.0, 2.25, 2.5, 3.0, 4.0, 6.0])

        def outcome(good: Reply) -> Reply | Failure:
            return chance.choice([good, good, good, CUT, BUSY])

        names = [f"r{number}" for number in range(60)]
        plans = {name: [(times(), outcome(FIRST)), (times(), outcome(SECOND))] for name in names}
        bench = Bench(Hedging(SLOW_S), window=chance.choice([20, 40, 100]), **plans)
        rich(bench.policy)
        traces, ended = {name: Trace() for name in names}, dict[str, Reply | Failure]()

        async def row(name: str) -> None:
            await asyncio.sleep(chance.choice([0.0, 0.25, 1.0]))
            ended[name] = await bench.one(name, traces[name])

        tasks = [asyncio.create_task(row(name)) for name in names]
        for task in chance.sample(tasks, 10):
            asyncio.get_running_loop().call_later(times(), task.cancel)
        await asyncio.wait(tasks)
        await bench.nothing_is_left()
        told = Counter(event.failure.type for event in bench.events if isinstance(event, AttemptFailed))
        assert len(bench.hedged) == len(bench.wire.sent) - len({sent.name for sent in bench.wire.sent})
        assert len(bench.wire.sent) == sum(told.values()) + len(ended)  # who has ended got one that is not told here
        for name, last in ended.items():
            attempts = traces[name].attempts
            assert len(attempts) == sum(sent.name == name for sent in bench.wire.sent)
            assert attempts[-1].failure is (last if isinstance(last, Failure) else None)
            assert all(attempt.failure is not None for attempt in attempts[:-1])
            assert not traces[name].hedged
        lost = [attempt.failure for trace in traces.values() for attempt in trace.attempts if attempt.failure]
        assert sum(failure.type == "abandoned" for failure in lost) <= told["abandoned"]
        assert bench.hedged

    virtually(main())


def rich(policy: Hedging) -> None:
    for _ in range(2_000):
        policy.begun()
