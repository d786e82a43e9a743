"""A server with so many places and a queue: as arithmetic in virtual time, and over sockets."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sim_wire import Client, endpoints, sim

from llmbatch.sim.slots import Place, Slots

Virtually = Callable[[Awaitable[Any]], Any]
CHAT = endpoints()["openai-chat"]


async def ended_at(slots: Slots, works_s: list[float], arrive_s: list[float] | None = None) -> list[float]:
    """When each piece of work is done that comes at its time, in the order of the list."""
    loop = asyncio.get_running_loop()
    ended = [loop.create_future() for _ in works_s]

    def come(number: int) -> None:
        def done() -> None:
            ended[number].set_result(loop.time())
            place.leave()

        place = slots.place(lambda: slots.call_after(works_s[number], done))
        place.enter()

    for number, at_s in enumerate(arrive_s or [0.0] * len(works_s)):
        if at_s > loop.time():
            loop.call_at(at_s, come, number)
        else:
            come(number)
    return await asyncio.gather(*ended)


def test_first_come_first_served_and_time_begins_with_the_slot(virtually: Virtually):
    async def main() -> list[float]:
        return await ended_at(Slots(2), [3.0, 1.0, 1.0, 5.0])

    assert virtually(main()) == pytest.approx([3.0, 1.0, 2.0, 7.0])


@pytest.mark.parametrize(
    ("count", "slowdown", "works_s", "arrive_s", "ends_s"),
    [
        (4, 1.0, [2.0], [0.0], [2.0]),  # alone: its own time
        (4, 1.0, [2.0] * 4, [0.0] * 4, [4.0] * 4),  # all busy: twice that
        (3, 1.0, [2.0] * 2, [0.0] * 2, [3.0] * 2),  # half way between
        (2, 1.0, [2.0] * 3, [0.0] * 3, [4.0, 4.0, 6.0]),  # the third comes when it is alone
        (2, 1.0, [3.0, 1.0], [0.0, 1.0], [4.0, 3.0]),  # slowed down in the middle, and fast again
        (1, 1.0, [2.0, 2.0], [0.0, 0.0], [2.0, 4.0]),  # one slot is never shared
        (2, 0.0, [2.0] * 2, [0.0] * 2, [2.0] * 2),
    ],
)
def test_tokens_come_slower_the_more_are_in_work(
    virtually: Virtually,
    count: int,
    slowdown: float,
    works_s: list[float],
    arrive_s: list[float],
    ends_s: list[float],
):
    async def main() -> list[float]:
        return await ended_at(Slots(count, slowdown), works_s, arrive_s)

    assert virtually(main()) == pytest.approx(ends_s)


@pytest.mark.parametrize("slowdown", [0.0, 1.0])
def test_more_slots_let_the_queue_in_and_fewer_take_no_work_away(virtually: Virtually, slowdown: float):
    async def main() -> list[str]:
        slots, began = Slots(1, slowdown), list[str]()
        places = {name: slots.place(lambda name=name: began.append(name)) for name in "abcd"}
        for place in places.values():
            place.enter()
        slots.resize(3)
        slots.resize(1)
        places["a"].leave()
        places["b"].leave()
        assert began == ["a", "b", "c"]
        places["c"].leave()
        return began

    assert virtually(main()) == ["a", "b", "c", "d"]


def test_who_leaves_the_queue_gets_no_slot_and_frees_none(virtually: Virtually):
    async def main() -> list[str]:
        slots, began = Slots(1), list[str]()
        places = {name: slots.place(lambda name=name: began.append(name)) for name in "abc"}
        for place in places.values():
            place.enter()
        places["b"].leave()
        places["b"].leave()
        places["a"].leave()
        return began

    assert virtually(main()) == ["a", "c"]


def test_ten_thousand_that_are_done_at_once_need_no_stack(virtually: Virtually):
    async def main() -> int:
        slots, done = Slots(1), 0
        held = slots.place(lambda: None)
        held.enter()

        def come() -> None:
            def begin() -> None:
                nonlocal done
                done += 1
                place.leave()

            place: Place = slots.place(begin)
            place.enter()

        for _ in range(10_000):
            come()
        held.leave()
        return done

    assert virtually(main()) == 10_000


async def answers(client: Client, count: int) -> list[int]:
    return [status for status, _, _ in await asyncio.gather(*(client.ask(CHAT) for _ in range(count)))]


async def test_more_than_the_slots_wait_and_nobody_is_refused():
    async with sim(slots="4", latency="0.1") as client:
        start_s = time.monotonic()
        assert await answers(client, 12) == [200] * 12
        took_s, ledger = time.monotonic() - start_s, client.server.ledger.snapshot()
    assert 0.3 <= took_s < 1.0
    assert (ledger["peak_in_flight"], ledger["peak_queued"]) == (12, 8)
    assert (ledger["in_flight"], ledger["queued"], ledger["rejected"]) == (0, 0, {})


async def test_a_refusal_waits_for_no_slot():
    async with sim(slots="1", latency="5", drain="0", fault="400=1") as client:
        async with asyncio.timeout(3):
            assert await answers(client, 3) == [400] * 3
        assert client.server.ledger.peak_queued == 0


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


async def test_a_queued_request_whose_client_left_is_dropped_and_not_billed():
    async with sim(slots="1", latency="0.3") as client:
        ledger = client.server.ledger
        first, second = (asyncio.create_task(client.ask(CHAT)) for _ in range(2))
        await until(lambda: ledger.queued == 1)
        third = asyncio.create_task(client.ask(CHAT))
        await until(lambda: ledger.queued == 2)
        second.cancel()
        await until(lambda: ledger.queued == 1)
        assert ledger.in_flight == 2
        assert [(await task)[0] for task in (first, third)] == [200, 200]
        assert (ledger.billed, ledger.in_flight, ledger.queued) == (2, 0, 0)


async def test_a_stalled_answer_keeps_its_slot_until_the_client_leaves(tmp_path: Any):
    script = tmp_path / "script.jsonl"
    script.write_text('{"n": 1, "fault": "stall"}\n')
    async with sim(slots="1", script=str(script)) as client:
        ledger = client.server.ledger
        stalled = asyncio.create_task(client.ask(CHAT))
        await until(lambda: ledger.in_flight == 1)
        waiting = asyncio.create_task(client.ask(CHAT))
        await until(lambda: ledger.queued == 1)
        stalled.cancel()
        assert (await waiting)[0] == 200


@pytest.mark.parametrize("slowdown", ["0", "1"])
async def test_streams_begin_with_their_slot_and_come_slower_together(slowdown: str):
    async with sim(**{"slots": "2", "slot-slowdown": slowdown, "first-token": "0.05", "latency": "0.2"}) as client:
        start_s = time.monotonic()
        streams = await asyncio.gather(*(client.raw_stream(CHAT) for _ in range(2)))
        took_s = time.monotonic() - start_s
    assert all(data.endswith(b"data: [DONE]\n\n") for data in streams)
    assert 0.2 * (1 + float(slowdown)) - 0.01 <= took_s < 0.2 * (1 + float(slowdown)) + 0.3


async def test_a_drain_waits_for_the_queue():
    async with sim(slots="1", latency="0.1", drain="5") as client:
        asked = [asyncio.create_task(client.ask(CHAT)) for _ in range(3)]
        await until(lambda: client.server.ledger.queued == 2)
        await client.server.__aexit__(None, None, None)
        assert [(await task)[0] for task in asked] == [200] * 3


async def test_what_a_drain_has_no_time_for_is_not_billed():
    async with sim(slots="1", latency="0.3", drain="0.1") as client:
        asked = [asyncio.create_task(client.ask(CHAT)) for _ in range(3)]
        await until(lambda: client.server.ledger.queued == 2)
        ledger = client.server.ledger
        await client.server.__aexit__(None, None, None)
        assert {type(outcome).__name__ for outcome in await asyncio.gather(*asked, return_exceptions=True)} <= {
            "ServerDisconnectedError",
            "ClientOSError",
        }
        assert (ledger.billed, ledger.in_flight, ledger.queued) == (0, 0, 0)
