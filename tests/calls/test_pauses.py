"""From the bytes of an answer to the pause of all rows, the whole way through the layers: every form, and garbage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from raw_server import ANSWER, ASK, QUICK, Script, Server, http, read_request, says, serve, wired

from llmbatch.calls.lane import Account
from llmbatch.calls.stack import Stack, build
from llmbatch.events import AttemptFailed, Event, GateClosed
from llmbatch.options import RetryLimits
from llmbatch.records import Reply, Trace
from llmbatch.rules.window import FixedWindow

BUSY_BODY = json.dumps({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}).encode()
# A server whose clock is years off.
DATE = "Date: Wed, 21 Oct 2015 07:28:00 GMT"
NO_WORD_S = pytest.approx(0.5, abs=0.01)  # the gate's own first pause, with a chance of 0


class Bench:
    """The layers around a wire to ``server``; what they tell, and how long each rest was."""

    def __init__(self, stack: Stack, server: Server, events: list[Event], rests: list[float]) -> None:
        self.stack, self.server, self.events, self.rests = stack, server, events, rests

    async def pause_s(self) -> float | None:
        """For how long the first answer closed the gate, None if it did not. Waits for no pause."""
        row = asyncio.create_task(self.stack.call(ASK, Trace()))
        while not row.done() and not self.events:
            await asyncio.sleep(0)
        row.cancel()
        await asyncio.gather(row, return_exceptions=True)
        return next((event.for_s for event in self.events if isinstance(event, GateClosed)), None)


@asynccontextmanager
async def bench(script: Script, *, window: int = 4, total_s: float = 5.0) -> AsyncIterator[Bench]:
    events: list[Event] = []
    rests: list[float] = []

    async def rest(delay_s: float) -> None:
        rests.append(delay_s)

    async with serve(script) as server, wired(server.url, timeouts=replace(QUICK, total_s=total_s)) as wire:
        stack = build(
            [Account("here", wire)],
            window=lambda: FixedWindow(window),
            retry=RetryLimits(),
            rest=rest,
            clock=asyncio.get_running_loop().time,
            chance=lambda: 0.0,
            listen=events.append,
        )
        yield Bench(stack, server, events, rests)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable", "529 Overloaded"])
@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [
        ([], None),
        (["Retry-After: 7"], 7.0),
        (["Retry-After: 0.25"], 0.25),
        (["retry-after-ms: 1935"], 1.935),
        (["retry-after-ms: 1935", "Retry-After: 2"], 2.0),
        ([DATE, "Retry-After: Wed, 21 Oct 2015 07:28:30 GMT"], 30.0),  # by its own clock, however wrong that is
        ([DATE, "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"], 251_975_000_000.0),
        (["Retry-After: 3", "Retry-After: 9"], 9.0),
        (["Retry-After: 1000000000"], 1e9),
        (["Retry-After: -5"], None),
        (["Retry-After: 0"], None),
        (["Retry-After: nan"], None),
        (["Retry-After: inf"], None),
        (["Retry-After: 1_000"], None),
        (["Retry-After: 1e9"], None),
        (["Retry-After: \u0663"], None),
        (["Retry-After: " + "9" * 400], None),
        (["retry-after-ms: " + "9" * 400], None),
        ([DATE, "Retry-After: Wed, 21 Oct 2015 07:27:00 GMT"], None),  # the past
        (["Retry-After: Wed, 21 Oct 2099 07:28:30 GMT"], None),  # no Date to measure it by
        (["Retry-After: soon"], None),
    ],
)
async def test_what_a_refusal_asks_for_is_the_pause_of_all_rows(
    status: str, headers: list[str], pause_s: float | None
) -> None:
    async with bench(says(http(BUSY_BODY, status, *headers))) as wired_bench:
        own_pause_s = NO_WORD_S if status.startswith("429") else None  # only a rate limit concerns all without a word
        found_s = await wired_bench.pause_s()
        assert found_s == (own_pause_s if pause_s is None else pytest.approx(pause_s, rel=0.001, abs=0.02))


@pytest.mark.parametrize(
    "said", [{"code": 429}, {"code": "429"}, {"code": "rate_limit_exceeded"}, {"type": "rate_limit_error"}]
)
@pytest.mark.parametrize(("headers", "pause_s"), [(["Retry-After: 7"], pytest.approx(7.0, abs=0.01)), ([], NO_WORD_S)])
async def test_a_rate_limit_inside_http_200_pauses_all_rows_too(
    said: dict[str, Any], headers: list[str], pause_s: float
) -> None:
    body = json.dumps({"error": {"message": "slow down", **said}}).encode()
    async with bench(says(http(body, "200 OK", *headers))) as wired_bench:
        assert await wired_bench.pause_s() == pause_s


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "1e400", "9" * 400, "garbage", "", "-0", "1_000"])
async def test_absurd_rate_limit_headers_change_nothing(value: str) -> None:
    names = (
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
        "anthropic-ratelimit-requests-remaining",
        "ratelimit",
    )
    async with bench(says(http(ANSWER, "200 OK", *(f"{name}: {value}" for name in names)))) as wired_bench:
        for _ in range(2):
            assert isinstance(await wired_bench.stack.call(ASK, Trace()), Reply)
        (lane,) = wired_bench.stack.limiter.lanes
        assert (lane.window.size, lane.gate.closings, lane.learnt.kinds, wired_bench.events) == (4, 0, (), [])


@pytest.mark.parametrize(("word", "tries"), [("false", 1), ("FALSE", 1), ("true", 5), ("maybe", 5), ("", 5)])
async def test_x_should_retry_is_obeyed(word: str, tries: int) -> None:
    refusal = http(b'{"error":{"message":"no"}}', "500 Internal Server Error", f"x-should-retry: {word}")
    async with bench(says(refusal)) as wired_bench:
        trace = Trace()
        await asyncio.gather(wired_bench.stack.call(ASK, trace), return_exceptions=True)
        failed = [event for event in wired_bench.events if isinstance(event, AttemptFailed)]
        assert len(trace.attempts) == len(failed) == tries


async def test_the_wait_for_a_slot_is_not_counted_in_the_time_limit() -> None:
    """Eight rows of 60 ms, one at a time, and 300 ms for each attempt: the last one waits longer than that."""
    async with bench(says(0.06, http()), window=1, total_s=0.3) as wired_bench:
        rows = await asyncio.gather(*(wired_bench.stack.call(ASK, Trace()) for _ in range(8)))
        assert all(isinstance(row, Reply) for row in rows) and not wired_bench.events


async def test_a_concurrency_of_500_is_500() -> None:
    """No answer is given before 500 requests are there."""
    there = 0
    all_there = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal there
        while await read_request(reader):
            there += 1
            if there == 500:
                all_there.set()
            await all_there.wait()
            writer.write(http())

    async with bench(script, window=500, total_s=30.0) as wired_bench:
        rows = await asyncio.gather(*(wired_bench.stack.call(ASK, Trace()) for _ in range(600)))
        assert len(rows) == 600 and wired_bench.server.most_at_once == 500
