"""The onion, in one sentence: a row is retried, each try waits its turn, and then it goes over the wire.

limit inside retry: every try pays for its slot, and a row that rests before its next try holds none. With a schema the
answer is checked outside of retry: one that does not fit is no failure of the server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from llmbatch.calls.check import Check
from llmbatch.calls.lane import Account
from llmbatch.calls.limit import Limiter
from llmbatch.calls.retry import Retry
from llmbatch.events import Listener
from llmbatch.options import SCHEMA_RETRIES, RetryLimits
from llmbatch.records import Call
from llmbatch.rules.answer import Fits
from llmbatch.rules.quota import Quota
from llmbatch.rules.window import Window


@dataclass(frozen=True, slots=True)
class Stack:
    """The outermost call, and the limiter inside it, whose state the scheduler and the display look at."""

    call: Call
    limiter: Limiter


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
) -> Stack:
    """retry( limit( wire )), or check( retry( limit( wire ))) with a schema; a wire for each account."""
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
    retrying = Retry(limiter, retry, rest, clock, chance, listen, quota)
    return Stack(retrying if schema is None else Check(retrying, schema, schema_retries, listen), limiter)
