"""The onion, in one sentence: a row is retried, each try waits its turn, and then it goes over the wire.

limit inside retry: every try pays for its slot, and a row that rests before its next try holds none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from llmbatch.calls.limit import Limiter
from llmbatch.calls.retry import Retry
from llmbatch.calls.wire import Wire
from llmbatch.events import Listener
from llmbatch.options import RetryLimits
from llmbatch.rules.pace import Pace
from llmbatch.rules.quota import Quota
from llmbatch.rules.window import Window


@dataclass(frozen=True, slots=True)
class Stack:
    """The outermost call, and the limiter inside it, whose state the scheduler and the display look at."""

    call: Retry
    limiter: Limiter


def build(
    wire: Wire,
    *,
    window: Window,
    pace: Pace | None,
    retry: RetryLimits,
    rest: Callable[[float], Awaitable[None]],
    clock: Callable[[], float],
    chance: Callable[[], float],
    listen: Listener,
    row_deadline_s: float | None = None,
    admitted: Callable[[], None] = lambda: None,
) -> Stack:
    """retry( limit( wire ))"""
    quota = Quota(window.size)
    limiter = Limiter(wire, window, pace, clock, chance, listen, quota, row_deadline_s, admitted)
    return Stack(Retry(limiter, retry, rest, clock, chance, listen, quota), limiter)
