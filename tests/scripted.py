"""An inner Call that answers by a script, on a loop with virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from llmbatch.records import Attempt, CallFailed, Failure, Reply, Request, Trace, Usage

PONG = Reply("pong", "stop", "m", Usage())
BUSY = Failure("rejected", "overloaded", "busy", http_status=503, retryable=True)
LIMITED = Failure("rejected", "rate_limit_exceeded", "slow down", http_status=429, retryable=True, rate_limited=True)
CUT = Failure("ambiguous", "disconnected", "cut", retryable=True)
BAD = Failure("permanent", "bad_request", "bad", http_status=400)


@dataclass(frozen=True, slots=True)
class Sent:
    """One request that reached the inner call."""

    at_s: float
    name: str
    attempt: int


Answer = Callable[[Sent], tuple[float, Reply | Failure]]


class Script:
    """``answer`` says for each request how long it takes and what comes of it."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.sent: list[Sent] = []
        self.in_flight = 0
        self.most_in_flight = 0

    @property
    def times_s(self) -> list[float]:
        return [sent.at_s for sent in self.sent]

    async def __call__(self, request: Request, trace: Trace, /) -> Reply:
        loop = asyncio.get_running_loop()
        attempt = Attempt(sent_s=loop.time())
        trace.attempts.append(attempt)
        name = str(request.params.get("name", request.model))
        sent = Sent(loop.time(), name, len(trace.attempts))
        self.sent.append(sent)
        latency_s, outcome = self._answer(sent)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(latency_s)
        finally:
            self.in_flight -= 1
        attempt.latency_s = loop.time() - attempt.sent_s
        if isinstance(outcome, Failure):
            attempt.failure = outcome
            raise CallFailed(outcome)
        return outcome


def always(outcome: Reply | Failure = PONG, latency_s: float = 1.0) -> Answer:
    return lambda sent: (latency_s, outcome)
