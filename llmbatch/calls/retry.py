"""Ask again, by the verdict of rules/retry.py; tenacity carries the policy.

The first try goes straight: entering tenacity costs as much as a quarter of a whole request, and most rows need
no second try. Each row has an AsyncRetrying of its own: a shared one mixes the attempts of concurrent rows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from llmbatch.events import AttemptFailed, Listener
from llmbatch.options import RetryLimits
from llmbatch.records import Call, CallFailed, Failure, Reply, Request, Trace
from llmbatch.rules.quota import Quota
from llmbatch.rules.retry import Verdict, decide

if TYPE_CHECKING:
    from tenacity import RetryCallState


class Retry:
    """``rest`` sleeps before the next try; while it does, the row holds no slot, no connection and no worker.

    ``quota`` is that of the limiter: it closes the gate when a retry can not be paid, and here nothing is paid then.
    """

    def __init__(
        self,
        inner: Call,
        limits: RetryLimits,
        rest: Callable[[float], Awaitable[None]],
        clock: Callable[[], float],
        chance: Callable[[], float],
        listen: Listener,
        quota: Quota,
    ) -> None:
        self._inner = inner
        self._limits = limits
        self._rest = rest
        self._clock = clock
        self._chance = chance
        self._listen = listen
        self._quota = quota

    async def __call__(self, request: Request, trace: Trace, /) -> Reply:
        try:
            return await self._inner(request, trace)
        except CallFailed as first:
            return await self._persist(request, trace, first)

    async def _persist(self, request: Request, trace: Trace, first: CallFailed) -> Reply:
        """Further tries; the first one, already made, is handed to tenacity as the outcome of its first attempt."""
        from tenacity import AsyncRetrying

        verdict = Verdict(False, 0.0, "")
        made = [first]

        async def attempt() -> Reply:
            if made:
                raise made.pop()
            return await self._inner(request, trace)

        def again(state: RetryCallState) -> bool:
            nonlocal verdict
            if state.outcome is None or not isinstance(state.outcome.exception(), CallFailed):
                return False
            verdict = self._verdict(trace)
            return verdict.again

        policy = AsyncRetrying(retry=again, wait=lambda state: verdict.delay_s, sleep=self._rest, reraise=True)
        return await policy(attempt)

    def _verdict(self, trace: Trace) -> Verdict:
        failures = [attempt.failure for attempt in trace.attempts if attempt.failure is not None]
        now_s = self._clock()
        limited_s = 0.0 if trace.limited_since_s is None else now_s - trace.limited_since_s
        last = failures[-1]
        free = last.concerns_all or last.elsewhere or trace.failed_before
        paid = free or self._quota.affords(last)
        own_fault = trace.others_answered is not None and trace.others_answered < self._quota.answers
        trace.others_answered = self._quota.answers
        trace.unpaid += not paid and not own_fault
        verdict = decide(failures, limited_s, self._limits, self._chance(), unpaid=trace.unpaid, paid=paid)
        if verdict.again and trace.deadline_s is not None and now_s + verdict.delay_s >= trace.deadline_s:
            verdict = Verdict(False, 0.0, "the row's deadline")
        if verdict.again and not free:
            trace.retry_costs += (self._quota.pay(last) if paid else 0,)
        elif not verdict.again and own_fault:
            self._quota.refund(sum(trace.retry_costs))
        self._tell(last, verdict)
        return verdict

    def _tell(self, failure: Failure, verdict: Verdict) -> None:
        self._listen(AttemptFailed(failure, verdict.delay_s if verdict.again else None, verdict.reason))
