"""A request that takes too long is sent a second time; the first good answer counts, and the other one is given up.

Inside retry and outside limit: both pay for their slot and their pace. The first runs in the row's own task, so that
nothing stands between its last byte and its line; the second in a task of its own, started by a look at all that are
under way, the oldest first. A row has left this layer before its loser is gone: ``settled`` waits for the last one.

With a streamed answer it is the first token that is waited for: what has begun to answer is not asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from llmbatch.calls.limit import ABANDONED
from llmbatch.events import AttemptFailed, Hedged, Listener
from llmbatch.records import Attempt, Call, CallFailed, Failure, Reply, Request, Stopped, Trace
from llmbatch.rules.hedge import Hedging

# Between two looks; the next one is when the oldest request becomes slow, if that is in between.
LONGEST_LOOK_S = 0.25
SHORTEST_LOOK_S = 0.01
# Where a second one has no room, it is looked for again after this share of the time that is slow.
LOOK_AGAIN_SHARE = 0.02
ASKED_TWICE = "asked twice, the other one counts"


class _Pair:
    """A row's request, and the second one if there is one. Owned by the row's task until ``left``.

    ``outcome`` is what the second one came to, once it decides: its answer, or a mistake that is to be raised.
    """

    __slots__ = (
        "asked_s",
        "cancels",
        "index",
        "left",
        "outcome",
        "request",
        "row",
        "second",
        "task",
        "trace",
        "waiter",
    )

    def __init__(self, request: Request, trace: Trace, asked_s: float) -> None:
        row = asyncio.current_task()
        assert row is not None, "rows run in tasks"
        self.request = request
        self.trace = trace
        self.index = len(trace.attempts)
        self.asked_s = asked_s
        self.row: asyncio.Task[Any] = row
        self.cancels = row.cancelling()
        self.second = _NONE
        self.task: asyncio.Task[None] | None = None
        self.outcome: Reply | Exception | None = None
        self.waiter: asyncio.Future[Reply | Exception | None] | None = None
        self.left = False

    @property
    def first(self) -> Attempt | None:
        """None while it waits for its turn."""
        attempts = self.trace.attempts
        return attempts[self.index] if len(attempts) > self.index else None


_NONE = Trace()


class Hedge:
    """Asks twice where ``policy`` and ``slack`` allow it. ``slack`` says whether the limiter has room to spare.

    ``twice`` counts the rows that are asked twice now. Owned by the run's loop.
    """

    def __init__(
        self,
        inner: Call,
        policy: Hedging,
        slack: Callable[[], bool],
        clock: Callable[[], float],
        listen: Listener,
    ) -> None:
        self._inner = inner
        self._policy = policy
        self._slack = slack
        self._clock = clock
        self._listen = listen
        self._rows = 0
        self._once: dict[_Pair, None] = {}  # asked once and not yet answering, the oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._look_at_s = 0.0
        self._mistake: Exception | None = None
        self.twice = 0

    async def __call__(self, request: Request, trace: Trace, /) -> Reply:
        pair = self._enter(request, trace)
        try:
            reply = await self._inner(request, trace)
            if pair.outcome is not None:  # it did not let itself be cancelled
                self._tell_lost(ABANDONED)
                return self._second_won(pair)
            self._first_won(pair)
            return reply
        except CallFailed as failed:
            if pair.outcome is not None:  # both at the same moment
                self._tell_lost(failed.failure)
                return self._second_won(pair)
            if pair.task is None or not pair.second.attempts:
                raise
            return await self._wait_for_second(pair, failed)
        except asyncio.CancelledError:
            if pair.outcome is None:
                raise
            return self._second_won(pair)
        finally:
            self._leave(pair)

    async def settled(self) -> None:
        """Until all that were given up are gone and told of. Raises what one of them raised by mistake."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._mistake is not None:
            raise self._mistake

    def _enter(self, request: Request, trace: Trace) -> _Pair:
        pair = _Pair(request, trace, self._clock())
        self._policy.begun()
        self._rows += 1
        self._once[pair] = None
        if self._timer is None:
            self._look_in(self._policy.threshold_s)
        return pair

    def _leave(self, pair: _Pair) -> None:
        self._once.pop(pair, None)
        self._rows -= 1
        pair.left = True
        if pair.task is not None:
            pair.task.cancel()
            self._alone(pair)

    def _alone(self, pair: _Pair) -> None:
        """There is no second one, or none any more."""
        if pair.task is not None:
            pair.task = None
            self.twice -= 1

    # What is slow

    def _look_in(self, seconds: float) -> None:
        delay_s = min(max(seconds, SHORTEST_LOOK_S), LONGEST_LOOK_S)
        self._look_at_s = self._clock() + delay_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._once:
            return
        now_s = self._clock()
        if now_s - self._look_at_s > LONGEST_LOOK_S:
            self._look_in(0.0)  # The loop stood still: what waits in the sockets is to be read first.
            return
        threshold_s = self._policy.threshold_s
        slow, next_s = self._slow(now_s, threshold_s)
        for pair in slow:
            if not (self._policy.room(self._rows, self.twice) and self._slack()):
                next_s = threshold_s * LOOK_AGAIN_SHARE
                break
            self._start(pair)
        self._look_in(next_s)

    def _slow(self, now_s: float, threshold_s: float) -> tuple[list[_Pair], float]:
        """Those that have been in flight for too long, and in how many seconds the next one may be."""
        slow, answering, next_s = [], [], LONGEST_LOOK_S
        for pair in self._once:
            if (left_s := pair.asked_s + threshold_s - now_s) > 0:
                next_s = left_s
                break
            first = pair.first
            if first is not None and first.first_token_s is not None:
                answering.append(pair)
            elif first is not None and first.sent_s + threshold_s <= now_s and pair.task is None:
                slow.append(pair)
        for pair in answering:
            del self._once[pair]
        return slow, next_s

    def _start(self, pair: _Pair) -> None:
        trace = pair.trace
        pair.second = Trace(
            deadline_s=trace.deadline_s,
            failed_before=trace.failed_before,
            retry_costs=trace.retry_costs,
            hedged=True,
        )
        self.twice += 1
        pair.task = asyncio.create_task(self._ask_again(pair))
        self._tasks.add(pair.task)
        pair.task.add_done_callback(self._tasks.discard)

    # The second one, in its own task

    async def _ask_again(self, pair: _Pair) -> None:
        if not (self._slack() and self._policy.take()):
            self._alone(pair)  # others were quicker; a later look may find room
            return
        self._once.pop(pair, None)
        try:
            reply = await self._inner(pair.request, pair.second)
        except CallFailed as failed:
            self._second_failed(pair, failed)
        except Stopped:
            pass
        except Exception as error:
            self._decide(pair, error)
        else:
            self._decide(pair, reply)
        finally:
            self._second_ended(pair)

    def _decide(self, pair: _Pair, outcome: Reply | Exception) -> None:
        """The second one is answered, or met a mistake of ours: what the first one does is of no interest now."""
        if pair.left:
            if isinstance(outcome, Exception):
                self._mistake = self._mistake or outcome
            else:
                self._tell_lost(ABANDONED)
            return
        pair.outcome = outcome
        if pair.waiter is None:
            pair.trace.hedged = True
            pair.row.cancel()
        elif not pair.waiter.done():
            pair.waiter.set_result(outcome)

    def _second_failed(self, pair: _Pair, failed: CallFailed) -> None:
        """The first one goes on alone; or it has failed before, and the row fails with this."""
        if pair.waiter is not None and not pair.waiter.done():
            pair.waiter.set_result(failed)
            return
        if not pair.left:
            _merge_before(pair)
        self._tell_lost(failed.failure)

    def _second_ended(self, pair: _Pair) -> None:
        if any(attempt.failure is None or attempt.failure.kind != "never_sent" for attempt in pair.second.attempts):
            self._listen(Hedged(isinstance(pair.outcome, Reply)))
        else:
            self._policy.give_back()
        self._alone(pair)
        if pair.waiter is not None and not pair.waiter.done():
            pair.waiter.set_result(None)

    # How the row ends

    def _first_won(self, pair: _Pair) -> None:
        attempt = pair.trace.attempts[-1]
        self._policy.answered(attempt.latency_s if attempt.first_token_s is None else attempt.first_token_s)
        if pair.task is not None and pair.second.attempts:
            # The wire will say what it may have cost; the row's line, which is written before that, counts it.
            pair.second.attempts[-1].failure = ABANDONED
            _merge_before(pair)

    async def _wait_for_second(self, pair: _Pair, failed: CallFailed) -> Reply:
        """The first one has failed. Raises CallFailed if the second one does, too."""
        pair.waiter = asyncio.get_running_loop().create_future()
        pair.second.hedged = False  # there is no other one any more
        try:
            outcome = await pair.waiter
        except asyncio.CancelledError:
            if pair.outcome is None:
                self._tell_lost(failed.failure)
                raise
            _cancel_later(pair.row)
            outcome = pair.outcome
        if outcome is None:
            _merge_before(pair)
            raise failed
        self._tell_lost(failed.failure)
        if isinstance(outcome, CallFailed):
            pair.trace.attempts += pair.second.attempts
            pair.trace.limited_since_s = pair.trace.limited_since_s or pair.second.limited_since_s
            raise outcome
        return self._second_won(pair)

    def _second_won(self, pair: _Pair) -> Reply:
        """The row's latency is from its first request to the answer that counts."""
        if pair.waiter is None:
            _take_back(pair)
        if isinstance(pair.outcome, Exception):
            raise pair.outcome
        trace, first, second = pair.trace, pair.trace.attempts[pair.index], pair.second.attempts[-1]
        if first.failure is None:
            first.failure = ABANDONED
        if first.failure.type == ABANDONED.type:
            waited_s = self._clock() - first.sent_s
            self._policy.answered(waited_s if first.first_token_s is None else first.first_token_s)
        late_s = second.sent_s - first.sent_s
        second.sent_s = first.sent_s
        second.latency_s += late_s
        if second.first_token_s is not None:
            second.first_token_s += late_s
        trace.attempts += pair.second.attempts
        trace.hedged = False
        assert pair.outcome is not None, "it has won"
        return pair.outcome

    def _tell_lost(self, failure: Failure) -> None:
        self._listen(AttemptFailed(failure, None, ASKED_TWICE, hedged=True))


def _merge_before(pair: _Pair) -> None:
    """The tries of the second one stand before the first one's, which counts."""
    pair.trace.attempts[pair.index : pair.index] = pair.second.attempts


def _take_back(pair: _Pair) -> None:
    """The cancellation that ended the first one was ours. Two between two steps of a task are thrown as one, so there
    may be another one's, too."""
    if pair.row.uncancel() > pair.cancels:
        _cancel_later(pair.row)


def _cancel_later(row: asyncio.Task[Any]) -> None:
    """A cancellation that came together with the answer: the answer is handed over first, then it comes again."""
    row.uncancel()
    row.cancel()
