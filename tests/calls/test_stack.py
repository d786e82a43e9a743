"""The order of the layers: every try, not only the first, waits for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from scripted import BUSY, PONG, Script

from llmbatch.calls.check import Check
from llmbatch.calls.lane import Account
from llmbatch.calls.retry import Retry
from llmbatch.calls.stack import build
from llmbatch.options import RetryLimits
from llmbatch.records import Request, Trace
from llmbatch.rules.pace import Meters, Pace
from llmbatch.rules.schema import AnswerSchema
from llmbatch.rules.window import FixedWindow

Virtually = Callable[[Awaitable[Any]], Any]


def test_every_try_pays_for_its_slot_and_its_turn(virtually: Virtually) -> None:
    async def main() -> None:
        script = Script(lambda sent: (5.0, BUSY if sent.attempt < 4 else PONG))
        stack = build(
            [Account("here", script, Meters({"requests": Pace(60)}))],
            window=lambda: FixedWindow(3),
            retry=RetryLimits(),
            rest=asyncio.sleep,
            clock=asyncio.get_running_loop().time,
            chance=lambda: 0.5,
            listen=lambda event: None,
        )
        await asyncio.gather(*(stack.call(Request("m", params={"name": str(row)}), Trace()) for row in range(10)))
        assert len(script.sent) == 40 and script.most_in_flight == 3
        assert min(later - sooner for sooner, later in pairwise(script.times_s)) > 0.9
        assert stack.limiter.peak_in_flight == 3

    virtually(main())


@pytest.mark.parametrize(("schema", "outermost"), [(None, Retry), (AnswerSchema({}), Check)])
def test_only_a_run_with_a_schema_has_a_layer_for_it(schema: AnswerSchema | None, outermost: type) -> None:
    stack = build(
        [Account("here", Script(lambda sent: (0.0, PONG)))],
        window=lambda: FixedWindow(1),
        retry=RetryLimits(),
        rest=asyncio.sleep,
        clock=lambda: 0.0,
        chance=lambda: 0.5,
        listen=lambda event: None,
        schema=schema,
    )
    assert type(stack.call) is outermost
