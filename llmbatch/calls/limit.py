"""The one gate before the wire: a slot in the window, the pace, and the shared gate after rate-limit answers.

Who waits here holds no slot and no connection. Waiting is first come, first served; one timer wakes the queue.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Literal

from llmbatch.calls.deadlines import row_deadline
from llmbatch.events import AttemptFailed, GateClosed, Listener, Notice, Status
from llmbatch.records import Attempt, Call, CallFailed, Failure, Reply, Request, Stopped, Trace
from llmbatch.rules.gate import Gate
from llmbatch.rules.pace import Pace
from llmbatch.rules.quota import PAUSE_S, Quota
from llmbatch.rules.window import Window

ABANDONED = Failure("ambiguous", "abandoned", "given up while it was in flight", retryable=True)
# A pause longer than this is said once; a shorter one only shows in the bar.
VISIBLE_PAUSE_S = 120.0


class Limiter:
    """Admits requests of one endpoint, key and model. Owned by the run's loop.

    ``admitted`` is called when ``in_flight`` has grown, before the bytes of the request leave.
    """

    def __init__(
        self,
        inner: Call,
        window: Window,
        pace: Pace | None,
        clock: Callable[[], float],
        chance: Callable[[], float],
        listen: Listener,
        quota: Quota,
        row_deadline_s: float | None = None,
        admitted: Callable[[], None] = lambda: None,
    ) -> None:
        self._inner = inner
        self.window = window
        self.gate = Gate()
        self._pace = pace
        self._clock = clock
        self._chance = chance
        self._listen = listen
        self._quota = quota
        self._row_deadline_s = row_deadline_s
        self._admitted = admitted
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.paused = False
        self._old = 0  # in flight since before the gate last closed
        self.in_flight = 0
        self.peak_in_flight = 0

    async def __call__(self, request: Request, trace: Trace, /) -> Reply:
        if self._closed:
            raise Stopped
        closings = await self._turn(trace) if self._waiting or not self._admit() else self.gate.closings
        if self._row_deadline_s is not None and trace.deadline_s is None:
            trace.deadline_s = self._clock() + self._row_deadline_s
        try:
            reply = await self._inner(request, trace)
        except CallFailed as failed:
            self._failed(failed.failure, trace)
            raise
        except asyncio.CancelledError:
            self._listen(AttemptFailed(_abandoned(trace), None))
            raise
        else:
            self._answered(trace)
            return reply
        finally:
            self._leave(closings)

    def close(self) -> None:
        """Send nothing more: whoever waits gets Stopped. What is in flight goes on."""
        self._closed = True
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(Stopped())

    def pause(self) -> None:
        """Send nothing until ``resume``. What is in flight goes on."""
        self.paused = True

    def resume(self) -> None:
        """Go on as the window, the pace and the gate allow it."""
        self.paused = False
        self._pump()

    def set_limits(self, window: Window, pace: Pace | None) -> None:
        """From now on these. What is in flight beyond them goes on."""
        self.window, self._pace = window, pace
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pump()

    def status(self, resting: int) -> Status:
        """What the display shows; ``resting`` rows wait for their next try."""
        closed_s = self.gate.wait_s(self._clock())
        return Status(self.in_flight, self._allowed(), resting, closed_s, self._binding(closed_s), self.paused)

    def _binding(self, closed_s: float) -> Literal["requests", "concurrency", "gate", "input", "paused", "idle"]:
        if self.paused:
            return "paused"
        if closed_s > 0 or self.gate.ramp is not None:
            return "gate"
        if not self._waiting and self.in_flight < self._allowed():
            return "input" if self.in_flight else "idle"
        return "concurrency" if self.in_flight >= self._allowed() or self._pace is None else "requests"

    def _allowed(self) -> int:
        return self.gate.allowed(self.window.size, self._old)

    def _admit(self) -> bool:
        """Take a slot now, if window, gate and pace all allow it."""
        if self._blocked_s() > 0:
            return False
        self.in_flight += 1
        self._admitted()
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        if self._pace is not None:
            self._pace.take(self._clock())
        return True

    def _blocked_s(self) -> float:
        """How long nothing may be sent; infinite while only an answer can free a slot, or only ``resume``."""
        return math.inf if self.paused or self.in_flight >= self._allowed() else self._wait_s()

    def _leave(self, closings: int) -> None:
        """Give back the slot that was taken when the gate had closed ``closings`` times."""
        self.in_flight -= 1
        if closings != self.gate.closings:
            self._old -= 1
        if self._waiting:
            self._pump()

    def _wait_s(self) -> float:
        if self._pace is None and self.gate.closings == 0:
            return 0.0
        now_s = self._clock()
        paced_s = self._pace.wait_s(now_s) if self._pace is not None else 0.0
        return max(paced_s, self.gate.wait_s(now_s))

    async def _turn(self, trace: Trace) -> int:
        """Wait for a slot; how often the gate had closed when it was given."""
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._pump()
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

    def _expire_later(self, waiter: asyncio.Future[int], trace: Trace) -> asyncio.TimerHandle | None:
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
        """Admit from the head of the queue as many as may go; if only time is missing, come back then."""
        while self._waiting:
            if self._waiting[0].done():
                self._waiting.popleft()
            elif self._admit():
                self._waiting.popleft().set_result(self.gate.closings)
            elif self._timer is None and not math.isinf(blocked_s := self._blocked_s()):
                # Also when no time is missing any more: the clock went on since it was asked.
                self._timer = asyncio.get_running_loop().call_later(blocked_s, self._wake)
                return
            else:
                return

    def _wake(self) -> None:
        self._timer = None
        self._pump()

    def _answered(self, trace: Trace) -> None:
        attempt = trace.attempts[-1]
        self.window.answered(attempt.latency_s)
        self._quota.answered(trace.retry_costs[-1] if trace.retry_costs else 0)
        if self.gate.ramp is not None:
            self.gate.answered(attempt.sent_s, self.window.size)

    def _failed(self, failure: Failure, trace: Trace) -> None:
        if failure.retryable and not failure.concerns_all and not trace.failed_before:
            self._count(failure, trace.attempts[-1].sent_s)
        if failure.concerns_all or failure.retry_after_s is not None:
            self._pause(failure, trace)

    def _count(self, failure: Failure, sent_s: float) -> None:
        """One more failure that another try may mend; when no try can be paid, all rows wait."""
        was_ill, now_s = self._quota.ill, self._clock()
        if self._quota.failed(failure) or not self.gate.spent(now_s, sent_s, PAUSE_S):
            return
        self._old = self.in_flight
        self._listen(GateClosed(self.gate.wait_s(now_s), failure, self.gate.strikes, ill=True))
        if not was_ill:
            share, status = self._quota.failed_share, f"{failure.http_status} " if failure.http_status else ""
            self._listen(
                Notice(
                    "warning",
                    f"{share:.0%} of the last requests failed ({status}{failure.type}: {failure.message}): waiting "
                    f"{PAUSE_S:.0f} s between probes until they are answered again",
                )
            )

    def _pause(self, failure: Failure, trace: Trace) -> None:
        """What the provider asks for, or what concerns all, holds up all rows."""
        now_s = self._clock()
        if failure.concerns_all and trace.limited_since_s is None:
            trace.limited_since_s = now_s
        closings, before_s = self.gate.closings, self.gate.wait_s(now_s)
        pause_s = self.gate.limited(now_s, trace.attempts[-1].sent_s, failure.retry_after_s, self._chance())
        if self.gate.closings != closings:
            self._old = self.in_flight
        self._listen(GateClosed(pause_s, failure, self.gate.strikes))
        if pause_s > VISIBLE_PAUSE_S >= before_s:
            self._listen(Notice("warning", f"the provider asked for a pause of {pause_s:,.0f} s: {failure.message}"))


def _abandoned(trace: Trace) -> Failure:
    """As the wire noted it, if it was reached."""
    noted = trace.attempts[-1].failure if trace.attempts else None
    return noted if noted is not None and noted.type == ABANDONED.type else ABANDONED
