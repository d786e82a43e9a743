"""The one gate before the wire: a place, the pace of every limit, and the shared gate after rate-limit answers.

Who waits here holds no place and no connection. Requests for one model wait in one queue, first come, first served, for
the first of its lanes (lane.py) that can take one; of several the one that is likely to answer first. One timer wakes
all queues.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from llmbatch.calls.deadlines import row_deadline
from llmbatch.calls.lane import Account, Admission, Cause, Lane
from llmbatch.events import AttemptFailed, Binding, DayUsedUp, GateClosed, Listener, Notice, Status
from llmbatch.records import Attempt, CallFailed, Failure, Reply, Request, Stopped, Trace
from llmbatch.rules.bottleneck import Moment, WaitsFor
from llmbatch.rules.pace import NO_TOKENS, Cost
from llmbatch.rules.quota import PAUSE_S, Quota
from llmbatch.rules.token_estimate import TokenEstimate, chars_of
from llmbatch.rules.window import Window

ABANDONED = Failure("ambiguous", "abandoned", "given up while it was in flight", retryable=True)
# A pause longer than this is said once; a shorter one only shows in the bar.
VISIBLE_PAUSE_S = 120.0
# Rows whose model has a closed gate for longer than this make room for rows of other models.
MAKE_ROOM_S = 1.0
# Models with a queue of their own; rows may name ever new ones.
MOST_QUEUES = 1_000


@dataclass(slots=True)
class _Waiter:
    """A request in a queue, and the future of its admission."""

    admitted: asyncio.Future[Admission]
    cost: Cost


class _Queue:
    """The requests for one model, and the lanes that can take them."""

    __slots__ = ("estimate", "lanes", "waiting")

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = lanes
        self.waiting: deque[_Waiter] = deque()
        self.estimate = TokenEstimate()

    @property
    def alive(self) -> list[Lane]:
        """Those that are still asked."""
        return [lane for lane in self.lanes if lane.dead is None] or [self.lanes[0]]

    def chars(self, request: Request) -> int | None:
        """Of what ``request`` says; None where no limit counts tokens."""
        for lane in self.lanes:
            if lane.counts_tokens:
                return chars_of(request)
        return None


# Of a learnt window, with more in flight there is no room for what nobody must have.
SLACK_SHARE = 0.9


class Limiter:
    """Admits requests to one or several accounts (endpoint and key). Owned by the run's loop.

    ``window`` makes the window of a new lane; ``most`` is how many may be in flight in all, whatever the windows say.
    ``admitted`` is called when ``in_flight`` has grown, before the bytes of the request leave. ``aside`` takes a row
    that waits for a closed gate out of the way of others. Where queues wait for the same thing they take turns.
    """

    def __init__(
        self,
        accounts: Sequence[Account],
        window: Callable[[], Window],
        clock: Callable[[], float],
        chance: Callable[[], float],
        listen: Listener,
        quota: Quota,
        *,
        most: int | None = None,
        row_deadline_s: float | None = None,
        admitted: Callable[[], None] = lambda: None,
        aside: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        assert accounts, "somebody must be asked"
        self.accounts = accounts
        self.most = most
        self.paused = False
        self._window = window
        self._clock = clock
        self._chance = chance
        self._listen = listen
        self._quota = quota
        self._row_deadline_s = row_deadline_s
        self._admitted = admitted
        self._aside = aside
        self._queues: dict[str, _Queue] = {}
        self._waiting: dict[_Queue, None] = {}  # queues in which somebody waits, next whose turn it is
        self._told_day = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf
        self._closed = False
        self.in_flight = 0
        self.peak_in_flight = 0

    async def __call__(self, request: Request, trace: Trace, /) -> Reply:
        if self._closed:
            raise Stopped
        queue = self._queues.get(request.model) or self._new_queue(request.model)
        chars = queue.chars(request)
        cost = NO_TOKENS if chars is None else queue.estimate.of(request, chars)
        admission = None if queue.waiting else self._admit(queue, cost)[0]
        if admission is None:
            admission = await self._turn(queue, cost, trace)
        if self._row_deadline_s is not None and trace.deadline_s is None:
            trace.deadline_s = self._clock() + self._row_deadline_s
        try:
            reply = await admission.lane.account.call(request, trace)
        except CallFailed as failed:
            failure = self._failed(queue, admission, failed.failure, trace)
            if failure is failed.failure:
                raise
            raise CallFailed(failure) from None
        except asyncio.CancelledError:
            self._listen(AttemptFailed(_abandoned(trace), None, hedged=trace.hedged))
            raise
        else:
            if chars is not None:
                queue.estimate.learn(chars, reply.usage)
            self._quota.answered(trace.retry_costs[-1] if trace.retry_costs else 0)
            admission.lane.answered(self._clock(), admission, trace.attempts[-1], reply.usage, queue.estimate)
            return reply
        finally:
            self._leave(admission)

    def close(self) -> None:
        """Send nothing more: whoever waits gets Stopped. What is in flight goes on."""
        self._closed = True
        waiting, self._waiting = self._waiting, {}
        for queue in waiting:
            while queue.waiting:
                waiter = queue.waiting.popleft().admitted
                if not waiter.done():
                    waiter.set_exception(Stopped())

    def pause(self) -> None:
        """Send nothing until ``resume``. What is in flight goes on."""
        self.paused = True

    def resume(self) -> None:
        """Go on as the windows, the limits and the gates allow it."""
        self.paused = False
        self._pump()

    def set_window(self, window: Callable[[], Window], most: int | None) -> None:
        """From now on this one, for every lane. What is in flight beyond it goes on."""
        self._window, self.most = window, most
        for lane in self.lanes:
            lane.window = lane.window.replaced(window())
        self._pump()

    def lane_statuses(self) -> dict[str, Status]:
        """The state of each lane, by the name of its endpoint and key, and its model if there are several."""
        now_s = self._clock()
        several = len(self._queues) > 1
        return {
            f"{lane.account.name} {model}" if several else lane.account.name: replace(
                lane.status(now_s), paused=self.paused
            )
            for model, queue in self._queues.items()
            for lane in queue.lanes
        }

    @property
    def capacity(self) -> int:
        """How many rows should be under way, waiting here or in flight."""
        size, most = 0, self.most or math.inf
        for queue in self._queues.values():  # asked for every row, and of many models the first will do
            for lane in queue.lanes:
                if lane.dead is None:
                    size += lane.window.size
            if size >= most:
                break
        size = size or self._window().size
        return size if self.most is None else min(size, self.most)

    @property
    def lanes(self) -> Iterator[Lane]:
        """All that have been asked."""
        return (lane for queue in self._queues.values() for lane in queue.lanes)

    def slack(self) -> bool:
        """Whether one may go that nobody must have: nobody waits, no gate, no pace and no learnt window is near.

        A window that the user has set is no limit of the provider; what goes in it takes the place of a row.
        """
        if self._closed or self.paused or self._waiting:
            return False
        now_s = self._clock()
        return all(lane.has_slack(now_s, SLACK_SHARE) for lane in self.lanes if lane.dead is None)

    def waits_for(self) -> Cause | None:
        """What the first of those who wait here waits for."""
        for queue in self._waiting:
            return self._lane(queue, queue.waiting[0].cost, self._clock())[2]
        return None

    def status(self, resting: int, binding: Binding) -> Status:
        """What the display shows; ``resting`` rows wait for their next try."""
        now_s = self._clock()
        held: Binding = "paused" if self.paused else binding
        return Status(self.in_flight, self._allowed(now_s), resting, self._closed_s(now_s), held, paused=self.paused)

    def waiting(self) -> Moment:
        """What the rows here wait for."""
        now_s = self._clock()
        cause: WaitsFor | None = self.waits_for()
        if cause is not None and self.paused:
            cause = "paused"
        return Moment(
            cause, in_flight=self.in_flight, allowed=self._allowed(now_s), gate_closed=self._closed_s(now_s) > 0
        )

    def _allowed(self, now_s: float) -> int:
        """How many may be in flight now."""
        allowed = sum(lane.allowed(now_s) for lane in self.lanes) or self.capacity
        return allowed if self.most is None else min(allowed, self.most)

    def _closed_s(self, now_s: float) -> float:
        """Seconds until the first gate opens; 0 if one is open."""
        return min((self._opens_s(queue, now_s) for queue in self._queues.values()), default=0.0)

    def _new_queue(self, model: str) -> _Queue:
        if len(self._queues) >= MOST_QUEUES:
            return next(iter(self._queues.values()))
        now_s = self._clock()
        queue = _Queue([Lane(account, model, self._window(), now_s) for account in self.accounts])
        self._queues[model] = queue
        return queue

    def _admit(self, queue: _Queue, cost: Cost) -> tuple[Admission | None, float]:
        """Take a place now, if something has one; else in how many seconds to try again (infinite: after an answer)."""
        now_s = self._clock()
        lane, blocked_s, cause = self._lane(queue, cost, now_s)
        if blocked_s > 0:
            if cause == "day" and not self._told_day:
                self._told_day = True
                self._listen(DayUsedUp(time.time() + blocked_s))
            return None, blocked_s
        if (daily := lane.account.daily) is not None:
            daily.take(time.time())
            self._told_day = False
        self.in_flight += 1
        admission = lane.admit(now_s, cost)
        self._admitted()
        if self.in_flight > self.peak_in_flight:
            self.peak_in_flight = self.in_flight
        return admission, 0.0

    def _lane(self, queue: _Queue, cost: Cost, now_s: float) -> tuple[Lane, float, Cause | None]:
        """The lane to ask, for how long it can not be asked (infinite until an answer comes), and why."""
        if self.paused or self._full:
            return queue.lanes[0], math.inf, "window"
        if len(queue.lanes) == 1:
            lane = queue.lanes[0]
            blocked_s, cause = lane.blocked(now_s, cost) if lane.account.daily is None else _blocked(lane, cost, now_s)
            return lane, blocked_s, cause
        known = [lane.latency_s for lane in queue.lanes if lane.latency_s is not None]
        usual_s = min(known, default=1.0)
        found = [(lane, *_blocked(lane, cost, now_s)) for lane in queue.alive]
        # Of a day that is used up nobody need know while another lane is only busy.
        found = [one for one in found if one[2] != "day"] or found
        likely = min(found, key=lambda one: (_free_in_s(one[0], one[1], usual_s), one[0].load(usual_s)))
        return likely[0], min(wait_s for _, wait_s, _ in found), likely[2]

    @property
    def _full(self) -> bool:
        return self.most is not None and self.in_flight >= self.most

    def _opens_s(self, queue: _Queue, now_s: float) -> float:
        """Seconds until the first gate of these lanes opens."""
        return min(lane.gate.wait_s(now_s) for lane in queue.alive)

    def _leave(self, admission: Admission) -> None:
        self.in_flight -= 1
        admission.lane.leave(admission)
        if self._waiting:
            self._pump()

    async def _turn(self, queue: _Queue, cost: Cost, trace: Trace) -> Admission:
        """Wait to be let in."""
        while self._aside is not None and len(self._queues) > 1:
            wait_s = self._opens_s(queue, self._clock())
            if trace.deadline_s is not None:
                wait_s = min(wait_s, trace.deadline_s - self._clock())
            if wait_s < MAKE_ROOM_S:
                break
            await self._aside(wait_s)
        if self._closed:  # the look for a place may have ended the run: nobody would wake who waits from here on
            raise Stopped
        waiter: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        queue.waiting.append(_Waiter(waiter, cost))
        self._waiting[queue] = None
        self._wake_in(self._pump_one(queue))
        expiry = self._expire_later(waiter, trace)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._leave(waiter.result())
            raise
        finally:
            if expiry is not None:
                expiry.cancel()

    def _expire_later(self, waiter: asyncio.Future[Admission], trace: Trace) -> asyncio.TimerHandle | None:
        """A row may not wait here beyond its deadline."""
        if trace.deadline_s is None or waiter.done():
            return None

        def expire() -> None:
            if not waiter.done():
                failure = row_deadline("never_sent", None)
                trace.attempts.append(Attempt(self._clock(), failure=failure))
                waiter.set_exception(CallFailed(failure))

        return asyncio.get_running_loop().call_later(max(0.0, trace.deadline_s - self._clock()), expire)

    def _pump(self) -> None:
        """Admit from the heads of the queues as many as may go; if only time is missing, come back then."""
        soonest_s = math.inf
        for queue in tuple(self._waiting):
            if self._full:
                return
            soonest_s = min(soonest_s, self._pump_one(queue))
        self._wake_in(soonest_s)

    def _pump_one(self, queue: _Queue) -> float:
        """Seconds until the head of this queue may go; infinite if there is none, or only an answer can help."""
        went = False
        while queue.waiting:
            head = queue.waiting[0]
            if not head.admitted.done():
                admission, blocked_s = self._admit(queue, head.cost)
                if admission is None:
                    if went and queue in self._waiting:  # behind the others
                        del self._waiting[queue]
                        self._waiting[queue] = None
                    return blocked_s
                head.admitted.set_result(admission)
                went = True
            queue.waiting.popleft()
        self._waiting.pop(queue, None)
        return math.inf

    def _wake_in(self, seconds: float) -> None:
        """Look again then, or sooner if that was said before."""
        if math.isinf(seconds):
            return
        loop = asyncio.get_running_loop()
        at_s = loop.time() + seconds
        if self._timer is not None:
            if self._timer_s <= at_s:
                return
            self._timer.cancel()
        self._timer_s, self._timer = at_s, loop.call_at(at_s, self._wake)

    def _wake(self) -> None:
        self._timer, self._timer_s = None, math.inf
        self._pump()

    def _failed(self, queue: _Queue, admission: Admission, failure: Failure, trace: Trace) -> Failure:
        """What follows for the lane and for all rows. The failure as the row is to see it."""
        lane, attempt, now_s = admission.lane, trace.attempts[-1], self._clock()
        before_s = lane.gate.wait_s(now_s)
        closings = lane.gate.closings
        lane.failed(now_s, admission, attempt, failure, self._chance(), queue.estimate)
        others = [one for one in queue.alive if one is not lane]
        if others and failure.fatal:
            attempt.failure = self._without(lane, failure)
            return attempt.failure
        if failure.concerns_all:
            if trace.limited_since_s is None:
                trace.limited_since_s = now_s
        elif others and lane.set_aside(now_s, attempt.sent_s, self._chance()):
            if lane.gate.closings != closings:
                self._tell_aside(lane, failure)
        elif failure.retryable and not trace.failed_before:
            self._count(lane, failure, attempt.sent_s)
        if failure.concerns_all or failure.retry_after_s is not None:
            if others and failure.unreachable and lane.gate.closings != closings:
                self._tell_aside(lane, failure)
            self._tell_closed(queue, lane, failure, before_s)
        return failure

    def _tell_closed(self, queue: _Queue, lane: Lane, failure: Failure, before_s: float) -> None:
        """The display need not know of a closed gate while another one is open."""
        now_s = self._clock()
        pause_s, alone = self._opens_s(queue, now_s), len(queue.alive) == 1
        if pause_s > 0 or alone:
            self._listen(GateClosed(pause_s, failure, min(one.gate.strikes for one in queue.alive)))
        if lane.gate.wait_s(now_s) > VISIBLE_PAUSE_S >= before_s and not self._closed:
            who, others = ("the provider", "") if alone else (lane.account.name, ", others are asked")
            text = f"{who} asked for a pause of {lane.gate.wait_s(now_s):,.0f} s{others}: {failure.message}"
            self._listen(Notice("warning", text))

    def _tell_aside(self, lane: Lane, failure: Failure) -> None:
        if lane.gate.strikes == 1:
            self._listen(Notice("warning", f"{lane.account.name} is set aside, others are asked: {failure.message}"))

    def _without(self, lane: Lane, failure: Failure) -> Failure:
        """Who refuses the key or does not have the model is not asked again while others are; its rows go to them."""
        if lane.dead is None:
            whom = lane.lose(failure)
            self._listen(Notice("warning", f"{whom} is not asked any more: {failure.message}"))
        return replace(failure, retryable=True, fatal=False, elsewhere=True)

    def _count(self, lane: Lane, failure: Failure, sent_s: float) -> None:
        """One more failure that another try may mend; when no try can be paid, all rows wait."""
        was_ill, now_s = self._quota.ill, self._clock()
        if self._quota.failed(failure) or not lane.spent(now_s, sent_s, PAUSE_S):
            return
        self._listen(GateClosed(lane.gate.wait_s(now_s), failure, lane.gate.strikes, ill=True))
        if not was_ill:
            share, status = self._quota.failed_share, f"{failure.http_status} " if failure.http_status else ""
            self._listen(
                Notice(
                    "warning",
                    f"{share:.0%} of the last requests failed ({status}{failure.type}: {failure.message}): waiting "
                    f"{PAUSE_S:.0f} s between probes until they are answered again",
                )
            )


def _blocked(lane: Lane, cost: Cost, now_s: float) -> tuple[float, Cause | None]:
    """What holds up the lane, the requests of its day among it."""
    daily = lane.account.daily
    if daily is not None and daily.left(now_unix_s := time.time()) <= 0:
        return max(daily.returns_at(now_unix_s) - now_unix_s, 1.0), "day"
    return lane.blocked(now_s, cost)


def _free_in_s(lane: Lane, blocked_s: float, usual_s: float) -> float:
    """When it can be asked, by the time of its answers if one of those must come first."""
    if not math.isinf(blocked_s):
        return blocked_s
    return usual_s if lane.latency_s is None else lane.latency_s


def _abandoned(trace: Trace) -> Failure:
    """As the wire noted it, if it was reached."""
    noted = trace.attempts[-1].failure if trace.attempts else None
    return noted if noted is not None and noted.type == ABANDONED.type else ABANDONED
