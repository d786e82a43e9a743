"""The order of the layers: every try, not only the first, waits for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from scripted import BUSY, PONG, Script

from llmbatch.calls.check import Check
from llmbatch.calls.hedge import Hedge
from llmbatch.calls.lane import Account
from llmbatch.calls.limit import Limiter
from llmbatch.calls.retry import Retry
from llmbatch.calls.stack import Stack, build
from llmbatch.options import RetryLimits
from llmbatch.records import Request, Trace
from llmbatch.rules.hedge import Hedging
from llmbatch.rules.pace import Meters, Pace
from llmbatch.rules.schema import AnswerSchema
from llmbatch.rules.window import FixedWindow

Virtually = Callable[[Awaitable[Any]], Any]


def stack_of(account: Account, window: int, clock: Callable[[], float], **layers: Any) -> Stack:
    """The layers around an account, with ``window`` in flight at most, and those that are asked for."""
    return build(
        [account],
        window=lambda: FixedWindow(window),
        retry=RetryLimits(),
        rest=asyncio.sleep,
        clock=clock,
        chance=lambda: 0.5,
        listen=lambda event: None,
        **layers,
    )


def test_every_try_pays_for_its_slot_and_its_turn(virtually: Virtually) -> None:
    async def main() -> None:
        script = Script(lambda sent: (5.0, BUSY if sent.attempt < 4 else PONG))
        account = Account("here", script, Meters({"requests": Pace(60)}))
        stack = stack_of(account, 3, asyncio.get_running_loop().time)
        await asyncio.gather(*(stack.call(Request("m", params={"name": str(row)}), Trace()) for row in range(10)))
        assert len(script.sent) == 40 and script.most_in_flight == 3
        assert min(later - sooner for sooner, later in pairwise(script.times_s)) > 0.9
        assert stack.limiter.peak_in_flight == 3

    virtually(main())


@pytest.mark.parametrize(("schema", "outermost"), [(None, Retry), (AnswerSchema({}), Check)])
def test_only_a_run_with_a_schema_has_a_layer_for_it(schema: AnswerSchema | None, outermost: type) -> None:
    stack = stack_of(Account("here", Script(lambda sent: (0.0, PONG))), 1, lambda: 0.0, schema=schema)
    assert type(stack.call) is outermost


@pytest.mark.parametrize(("hedging", "inside_retry"), [(None, Limiter), (Hedging(1.0), Hedge)])
def test_only_a_run_that_hedges_has_a_layer_for_it(hedging: Hedging | None, inside_retry: type) -> None:
    stack = stack_of(Account("here", Script(lambda sent: (0.0, PONG))), 1, lambda: 0.0, hedging=hedging)
    assert isinstance(stack.call, Retry) and type(stack.call._inner) is inside_retry


@pytest.mark.parametrize(("window", "capacity"), [(4, [4, 3, 4]), (1, [1, 1, 1])])
def test_a_row_that_is_asked_twice_takes_the_place_of_two_but_one_row_may_always_go(
    virtually: Virtually, window: int, capacity: list[int]
) -> None:
    async def main() -> None:
        account = Account("here", Script(lambda sent: (3.0, PONG)))
        stack = stack_of(account, window, asyncio.get_running_loop().time, hedging=Hedging(1.0))
        seen = [stack.capacity()]
        row = asyncio.create_task(stack.call(Request("m"), Trace()))
        await asyncio.sleep(2.0)
        seen.append(stack.capacity())
        await row
        assert [*seen, stack.capacity()] == capacity  # at once, also while the loser is not gone yet
        await stack.settled()

    virtually(main())
