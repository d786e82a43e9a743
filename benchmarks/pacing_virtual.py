"""A provider in virtual time: the real scheduler and the real call stack before it, hours of traffic in seconds.

The provider holds the true limiter or the true slots (llmbatch/sim/limits.py, slots.py), of which our side sees only
what the wire would show it: answers, refusals, and headers where they are on. Times are those of a loop whose clock
jumps to the next timer, in whole milliseconds as epoll does.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from array import array
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llmbatch.calls.lane import Account
from llmbatch.calls.limit import ABANDONED
from llmbatch.calls.stack import Stack, build
from llmbatch.options import RetryLimits
from llmbatch.records import Attempt, CallFailed, Failure, Reply, Request, Trace, Usage
from llmbatch.rules.limits import Allowance, Limits
from llmbatch.rules.pace import MINUTE_S, Kind, Meters, pace_for
from llmbatch.rules.window import window_for
from llmbatch.scheduler import Job, Outcome, Scheduler
from llmbatch.sim.limits import Limiter, Reading, Refusal
from llmbatch.sim.slots import Slots

T = TypeVar("T")
# As many as a machine with 20,000 open files allows.
CEILING = 20_000
# One way through the network, in seconds: even between these.
NETWORK_S = (0.005, 0.025)
CHARS_PER_TOKEN = 4
_DISCONNECTED = Failure("ambiguous", "disconnected", "Server disconnected", retryable=True)
_REFUSED = Failure("never_sent", "connection_refused", "nobody there", retryable=True, unreachable=True)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Numbers whose logarithm is normal, cut at both ends. A ``sigma`` above 1 has a heavy tail."""

    median: float
    sigma: float
    low: float
    high: float

    def draw(self, chance: random.Random) -> float:
        return min(self.high, max(self.low, chance.lognormvariate(math.log(self.median), self.sigma)))


@dataclass(frozen=True, slots=True)
class Span:
    """A time of the run, in seconds."""

    start_s: float
    end_s: float

    def __contains__(self, at_s: float) -> bool:
        return self.start_s <= at_s < self.end_s


_NEVER = Span(math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Case:
    """One run against one provider.

    rpm, tpm, burst_s  the true limits; ``rpm`` changes at the times of ``changes``, as (seconds, rpm)
    told               whether our side is told ``rpm`` and ``tpm`` (--rpm, --tpm)
    headers            whether answers and refusals tell of the limits and how long to wait
    latency            seconds of an answer (without slots)
    slots, slowdown    of a server that queues, where the time follows from the tokens
    down, storm        when nobody is there, and when all requests get 429
    concurrency        a fixed window (--concurrency), None for auto
    max_concurrency    the cap of auto (--max-concurrency)
    """

    duration_s: float
    rpm: float | None = None
    tpm: float | None = None
    burst_s: float = 60.0
    told: bool = False
    headers: bool = False
    latency: Lognormal = field(default_factory=lambda: Lognormal(1.2, 0.8, 0.2, 8.0))
    prompt_tokens: Lognormal = field(default_factory=lambda: Lognormal(120.0, 0.5, 20.0, 1000.0))
    output_tokens: Lognormal = field(default_factory=lambda: Lognormal(150.0, 0.7, 10.0, 4000.0))
    slots: int | None = None
    slowdown: float = 0.0
    changes: Sequence[tuple[float, float]] = ()
    down: Span = _NEVER
    storm: Span = _NEVER
    concurrency: int | None = None
    max_concurrency: int | None = None
    seed: int = 1


# Of a slot's time: reading the prompt, and each token (a server of 7B to 70B on one machine).
PREFILL_S = 0.15
TOKEN_S = 0.02


@dataclass(slots=True)
class Diary:
    """What the provider saw, in seconds of the run.

    sent       when our side sent each request
    accepted   when those that were let in came, ``tokens`` what each took from the limit
    refused    when those came that got 429
    unanswered when connections were refused
    answered   when good answers arrived, ``work`` what each was worth in seconds of a slot
    in_flight  (when, how many) at our side, at each change
    """

    sent: array[float] = field(default_factory=lambda: array("d"))
    accepted: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[float] = field(default_factory=lambda: array("d"))
    refused: array[float] = field(default_factory=lambda: array("d"))
    unanswered: array[float] = field(default_factory=lambda: array("d"))
    answered: array[float] = field(default_factory=lambda: array("d"))
    work: array[float] = field(default_factory=lambda: array("d"))
    in_flight_at: array[float] = field(default_factory=lambda: array("d"))
    in_flight: array[float] = field(default_factory=lambda: array("d"))
    failed_rows: int = 0


class VirtualProvider:
    """The innermost Call, in the place of calls/wire.py, with the provider behind it. Owned by the running loop."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._loop = asyncio.get_running_loop()
        self._chance = random.Random(case.seed)
        self._limiter = Limiter(case.rpm, case.tpm, case.burst_s)
        self._slots = None if case.slots is None else Slots(case.slots, case.slowdown)
        self._open: set[asyncio.Future[Reply]] = set()
        self.diary = Diary()
        for at_s, rpm in case.changes:
            self._loop.call_at(at_s, self._limiter.change, "rpm", rpm)
        if not math.isinf(case.down.start_s):
            self._loop.call_at(case.down.start_s, self._hang_up)

    async def __call__(self, request: Request, trace: Trace, /) -> Reply:
        loop, diary = self._loop, self.diary
        attempt = Attempt(sent_s=loop.time())
        trace.attempts.append(attempt)
        answer: asyncio.Future[Reply] = loop.create_future()
        self._open.add(answer)
        self._note_in_flight()
        diary.sent.append(attempt.sent_s)
        loop.call_later(self._network_s(), self._came, request, attempt, answer)
        try:
            return await answer
        except asyncio.CancelledError:
            attempt.failure = ABANDONED
            raise
        except CallFailed as failed:
            attempt.failure = failed.failure
            raise
        finally:
            self._open.discard(answer)
            self._note_in_flight()
            attempt.latency_s = loop.time() - attempt.sent_s

    def _came(self, request: Request, attempt: Attempt, answer: asyncio.Future[Reply]) -> None:
        """A request is at the provider."""
        if answer.done():
            return
        case, now_s, diary = self._case, self._loop.time(), self.diary
        if now_s in case.down:
            diary.unanswered.append(now_s)
            self._fail(_REFUSED, answer)
            return
        if now_s in case.storm:
            diary.refused.append(now_s)
            self._fail(_limited("requests", None), answer)
            return
        input_tokens = len(request.messages[0]["content"]) // CHARS_PER_TOKEN
        output_tokens = round(case.output_tokens.draw(self._chance))
        refusal = self._limiter.admit(now_s, input_tokens, output_tokens)
        if case.headers:
            attempt.limits = _limits(self._limiter.readings(now_s))
        if refusal is not None:
            diary.refused.append(now_s)
            self._fail(_limited(refusal.unit, _told_wait_s(refusal) if case.headers else None), answer)
            return
        diary.accepted.append(now_s)
        diary.tokens.append(input_tokens + output_tokens)
        reply = Reply("ok", "stop", request.model, Usage(input_tokens, output_tokens))
        if self._slots is None:
            self._loop.call_later(case.latency.draw(self._chance), self._answer, reply, 1.0, answer)
        else:
            self._queue(self._slots, reply, PREFILL_S + TOKEN_S * output_tokens, answer)

    def _queue(self, slots: Slots, reply: Reply, work_s: float, answer: asyncio.Future[Reply]) -> None:
        def begin() -> None:
            slots.call_after(work_s, done)

        def done() -> None:
            place.leave()
            self._loop.call_later(self._network_s(), self._answer, reply, work_s, answer)

        place = slots.place(begin)
        place.enter()

    def _answer(self, reply: Reply, work_s: float, answer: asyncio.Future[Reply]) -> None:
        if not answer.done():
            self.diary.answered.append(self._loop.time())
            self.diary.work.append(work_s)
            answer.set_result(reply)

    def _fail(self, failure: Failure, answer: asyncio.Future[Reply]) -> None:
        def fail() -> None:
            if not answer.done():
                answer.set_exception(CallFailed(failure))

        self._loop.call_later(self._network_s(), fail)

    def _hang_up(self) -> None:
        """Existing connections are closed when nobody is there any more."""
        for answer in self._open:
            if not answer.done():
                answer.set_exception(CallFailed(_DISCONNECTED))

    def _network_s(self) -> float:
        low_s, high_s = NETWORK_S
        return low_s + (high_s - low_s) * self._chance.random()

    def _note_in_flight(self) -> None:
        if self._slots is not None:
            self.diary.in_flight_at.append(self._loop.time())
            self.diary.in_flight.append(len(self._open))


def _limited(unit: str, retry_after_s: float | None) -> Failure:
    return Failure(
        "rejected",
        "rate_limit_exceeded",
        f"Rate limit reached on {unit} per min.",
        http_status=429,
        retry_after_s=retry_after_s,
        retryable=True,
        rate_limited=True,
    )


def _told_wait_s(refusal: Refusal) -> float | None:
    """Retry-After, in whole seconds."""
    return None if refusal.wait_s is None else float(max(1, math.ceil(refusal.wait_s)))


def _limits(readings: Sequence[Reading]) -> Limits:
    """What rules/limits.py makes of the headers that the readings would become."""
    said = {
        reading.unit: Allowance(round(reading.limit), reading.remaining, math.ceil(reading.reset_s * 1000) / 1000)
        for reading in readings
    }
    nothing = Allowance()
    return Limits(requests=said.get("requests", nothing), tokens=said.get("tokens", nothing))


def stack_for(
    case: Case, provider: VirtualProvider, scheduler: Scheduler, chance: random.Random
) -> tuple[Stack, Callable[[], int]]:
    """The layers around the provider, and how many rows may be under way, as sender.py has them for such options.

    The one place that knows how our side is put together.
    """
    said: dict[Kind, float | None] = {"requests": case.rpm, "tokens": case.tpm} if case.told else {}
    meters = Meters({kind: pace_for(kind, limit) for kind, limit in said.items() if limit is not None})
    most = min(CEILING, case.concurrency or case.max_concurrency or CEILING)
    per_s = None if case.rpm is None or not case.told else case.rpm / MINUTE_S
    stack = build(
        [Account("virtual", provider, meters)],
        window=lambda: window_for(case.concurrency, per_s, most),
        most=most,
        retry=RetryLimits(),
        rest=scheduler.rest,
        clock=asyncio.get_running_loop().time,
        chance=chance.random,
        listen=lambda event: None,
    )
    return stack, lambda: stack.limiter.capacity


class EndlessFeed:
    """Rows without end, with prompts of the case's lengths."""

    def __init__(self, case: Case) -> None:
        chance = random.Random(case.seed + 1)
        lengths = [round(case.prompt_tokens.draw(chance)) * CHARS_PER_TOKEN for _ in range(256)]
        self._requests = [Request("m", [{"role": "user", "content": "x" * length}]) for length in lengths]
        self._row = 0

    def take(self) -> Job:
        self._row += 1
        return Job(self._row, None, "", self._requests[self._row % len(self._requests)])

    async def refill(self) -> bool:
        return True


async def _run(case: Case) -> Diary:
    provider = VirtualProvider(case)

    def finished(job: Job, outcome: Outcome, trace: Trace) -> None:
        provider.diary.failed_rows += isinstance(outcome, Failure)

    scheduler = Scheduler(EndlessFeed(case), finished)
    stack, capacity = stack_for(case, provider, scheduler, random.Random(case.seed + 2))

    def end() -> None:
        stack.limiter.close()
        scheduler.abandon()

    asyncio.get_running_loop().call_at(case.duration_s, end)
    await scheduler.run(stack.call, capacity)
    return provider.diary


def run(case: Case) -> Diary:
    """The case to its end, in virtual time."""
    return run_virtually(_run(case))


class _TimeMachine(selectors.BaseSelector):
    """Watches no file and does not wait: it moves the clock of its loop."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits and no timer is set")
        if timeout > 0:
            self.now_s += max(1, math.ceil(timeout * 1000 - 1e-6)) / 1000
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, -1, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, -1, 0, None)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)

    def get_map(self) -> dict[Any, selectors.SelectorKey]:
        return {}


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when nothing else is left to do, and then at once. For code without sockets and threads."""

    def __init__(self) -> None:
        self._machine = _TimeMachine()
        super().__init__(self._machine)

    def time(self) -> float:
        return self._machine.now_s


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
