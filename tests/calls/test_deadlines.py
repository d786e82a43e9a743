"""Time limits: named, never early, and never at the cost of an answer that is here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from llmbatch.calls.deadlines import SPARED_LOOKS, TICK_S, Watch, row_deadline, timed_out

Virtually = Callable[[Awaitable[Any]], Any]


@pytest.mark.parametrize(
    ("total_s", "first_token_s", "heard_at_s", "limit", "at_s"),
    [
        (10.0, None, [], "total", 10.0),
        (10.0, 4.0, [], "first_token", 4.0),
        (10.0, 4.0, [3.0], "idle", 5.0),
        (10.0, 4.0, [1.0, 2.5, 4.0, 5.5], "idle", 7.5),
        (10.0, 4.0, [1.0 + step for step in range(9)], "total", 10.0),
        (10.0, None, [3.0], "idle", 5.0),
        (0.5, 4.0, [], "total", 0.5),
    ],
)
def test_which_limit_ends_an_attempt_and_when(
    virtually: Virtually,
    total_s: float,
    first_token_s: float | None,
    heard_at_s: list[float],
    limit: str,
    at_s: float,
) -> None:
    async def main() -> None:
        watch, loop = Watch(100.0), asyncio.get_running_loop()
        watching = asyncio.create_task(watch.run())
        with watch.guard(total_s, first_token_s) as guard:
            for moment_s in heard_at_s:
                loop.call_at(moment_s, guard.heard, 2.0)
            with pytest.raises(asyncio.CancelledError):
                await loop.create_future()
        assert guard.expired == limit
        assert at_s <= loop.time() <= at_s + 2 * TICK_S
        watching.cancel()
        assert not watch.guards

    virtually(main())


def test_the_watch_looks_often_enough_for_the_shortest_limit() -> None:
    assert Watch(0.1).tick_s == 0.025
    assert Watch(1000.0).tick_s == TICK_S


def test_time_in_which_the_loop_stood_still_does_not_count(virtually: Virtually) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        watch = Watch(100.0)
        watching = asyncio.create_task(watch.run())
        await asyncio.sleep(1.1)
        loop._machine.now_s += 3600.0  # type: ignore[attr-defined]
        await asyncio.sleep(1.0)
        assert watch.attended_s < 1.1 + 1.0 + 3 * TICK_S
        watching.cancel()

    virtually(main())


def test_each_long_standstill_is_told_once(virtually: Virtually) -> None:
    """Of the process, which the loop's clock sees, or of the machine, which only another clock sees."""

    async def main() -> None:
        loop, told, asleep_s = asyncio.get_running_loop(), [], 0.0
        watch = Watch(100.0, told.append, lambda: loop.time() + asleep_s)
        watching = asyncio.create_task(watch.run())
        await asyncio.sleep(1.1)
        for stopped_s, slept_s in ((63.0, 0.0), (4.0, 0.0), (0.0, 3600.0), (0.0, 4.0)):
            loop._machine.now_s += stopped_s  # type: ignore[attr-defined]
            asleep_s += slept_s
            await asyncio.sleep(2.0)
        watching.cancel()
        assert told == pytest.approx([63.0, 3600.0], abs=TICK_S)

    virtually(main())


def test_what_is_overdue_gets_one_more_look(virtually: Virtually) -> None:
    async def main() -> None:
        watch = Watch(100.0)
        answer = asyncio.get_running_loop().create_future()

        async def attempt() -> str:
            with watch.guard(5.0, None):
                return str(await answer)

        task = asyncio.create_task(attempt())
        await asyncio.sleep(0)
        watch.attended_s = 6.0
        watch.look()
        answer.set_result("late, and paid")
        watch.look()
        assert await task == "late, and paid"

    virtually(main())


def test_an_attempt_whose_answer_was_just_delivered_is_left_alone(virtually: Virtually) -> None:
    async def main() -> None:
        watch = Watch(100.0)
        answer = asyncio.get_running_loop().create_future()

        async def attempt() -> str:
            with watch.guard(5.0, None):
                return str(await answer)

        task = asyncio.create_task(attempt())
        await asyncio.sleep(0)
        watch.attended_s = 6.0
        answer.set_result("here")
        for _ in range(5):
            watch.look()
        assert await task == "here"

    virtually(main())


def test_messages_name_the_flag() -> None:
    assert "--timeout" in timed_out("total", 3.0, "r1").message
    assert "--first-token-timeout" in timed_out("first_token", 3.0, None).message
    assert "--idle-timeout" in timed_out("idle", 3.0, None).message
    assert "--row-deadline" in row_deadline("ambiguous", None).message
    assert timed_out("total", 3.0, "r1").request_id == "r1" and timed_out("idle", 1.0, None).maybe_billed


async def test_a_server_that_never_stops_to_send_is_not_spared_for_ever() -> None:
    """Its next bytes have always just come."""
    watch = Watch(100.0)

    async def attempt() -> None:
        with watch.guard(5.0, None):
            while True:
                await asyncio.sleep(0)

    task = asyncio.create_task(attempt())
    await asyncio.sleep(0)
    watch.attended_s = 6.0
    looks = 0
    while not task.done() and looks < 100:
        watch.look()
        looks += 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert task.cancelled() and looks == SPARED_LOOKS + 2
