"""The onion, in one sentence: a row is retried, each try waits its turn, and then it goes over the wire.

limit inside retry: every try pays for its slot, and a row that rests before its next try holds none. With a schema the
answer is checked outside of retry: one that does not fit is no failure of the server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from llmbatch.calls.check import Check
from llmbatch.calls.hedge import Hedge
from llmbatch.calls.lane import Account
from llmbatch.calls.limit import Limiter
from llmbatch.calls.retry import Retry
from llmbatch.events import Listener
from llmbatch.options import SCHEMA_RETRIES, RetryLimits
from llmbatch.records import Call
from llmbatch.rules.answer import Fits
from llmbatch.rules.hedge import Hedging
from llmbatch.rules.quota import Quota
from llmbatch.rules.window import Window


@dataclass(frozen=True, slots=True)
class Stack:
    """The outermost call, and the limiter inside it, whose state the scheduler and the display look at."""

    call: Call
    limiter: Limiter
    hedge: Hedge | None = None

    def capacity(self) -> int:
        """How many rows may be under way: a row that is asked twice takes the place of two."""
        size = self.limiter.capacity
        return size if self.hedge is None else max(1, size - self.hedge.twice)

    async def settled(self) -> None:
        """Until nothing is left of what was given up."""
        if self.hedge is not None:
            await self.hedge.settled()


def build(
    accounts: Sequence[Account],
    *,
    window: Callable[[], Window],
    most: int | None = None,
    retry: RetryLimits,
    rest: Callable[[float], Awaitable[None]],
    clock: Callable[[], float],
    chance: Callable[[], float],
    listen: Listener,
    row_deadline_s: float | None = None,
    admitted: Callable[[], None] = lambda: None,
    schema: Fits | None = None,
    schema_retries: int = SCHEMA_RETRIES,
    hedging: Hedging | None = None,
    slack: Callable[[], bool] | None = None,
) -> Stack:
    """retry( limit( wire )), within check( ... ) with a schema; with ``hedging`` retry( hedge( limit( wire ))).

    There is a wire for each account. ``slack`` says when there is room for a second request; None asks the limiter.
    """
    quota = Quota(window().size)
    limiter = Limiter(
        accounts,
        window,
        clock,
        chance,
        listen,
        quota,
        most=most,
        row_deadline_s=row_deadline_s,
        admitted=admitted,
        aside=rest,
    )
    hedge = None if hedging is None else Hedge(limiter, hedging, slack or limiter.slack, clock, listen)
    retrying = Retry(hedge or limiter, retry, rest, clock, chance, listen, quota)
    return Stack(retrying if schema is None else Check(retrying, schema, schema_retries, listen), limiter, hedge)
