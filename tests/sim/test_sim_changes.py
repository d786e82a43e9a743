"""Settings that change while the provider runs, and what the ledger tells of each second."""

import asyncio
import time
from collections.abc import Callable

import aiohttp
import pytest
from sim_wire import Client, endpoints, sim

from llmbatch.sim.changes import Change
from llmbatch.sim.ledger import MOST_SECONDS, Ledger, Times
from llmbatch.sim.options import sim_options_from

CHAT = endpoints()["openai-chat"]


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("60s:rpm=300", Change(60.0, "rpm", 300.0)),
        ("60:rpm=300", Change(60.0, "rpm", 300.0)),
        ("1.5m:input_tpm=7", Change(90.0, "input_tpm", 7.0)),
        ("250ms:slots=16", Change(0.25, "slots", 16)),
        ("1h:fault=429=1.0,503=0", Change(3600.0, "faults", {"429": 1.0, "503": 0.0})),
        ("0s:no-headers=true", Change(0.0, "headers", False)),
        ("30s:down=10m", Change(30.0, "down", 600.0)),
        (" 5s:limit-headers=groq ", Change(5.0, "limit_headers", "groq")),
    ],
)
def test_a_change_is_read(text: str, change: Change):
    assert sim_options_from({"at": text}).changes == (change,)


def test_changes_are_joined_by_semicolons():
    changes = sim_options_from({"at": "1s:latency=uniform:low=0,high=1;2s:rpm=5"}).changes
    assert [(change.at_s, change.field) for change in changes] == [(1.0, "latency"), (2.0, "rpm")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rpm=300", "is not TIME:NAME=VALUE"),
        ("60s", "is not TIME:NAME=VALUE"),
        ("60s:rpm", "is not TIME:NAME=VALUE"),
        ("soon:rpm=300", "'soon' is not a time"),
        ("-1s:rpm=300", "'-1s' is not a time"),
        ("1s:rpm=0", "must be above 0"),
        ("1s:down=never", "'never' is not a time"),
        ("1s:port=1", "port can not change; these can: down, latency"),
        ("1s:at=2s:rpm=1", "at can not change"),
        ("1s:nonsense=1", "nonsense can not change"),
        ("1s:down=10s;11s:down=1s", "the times of down must not meet"),
        ("1s:rpm=1;", "'' is not TIME:NAME=VALUE"),
    ],
)
def test_a_change_that_can_not_be_says_why(text: str, why: str):
    with pytest.raises(ValueError, match=r"^at: ") as raised:
        sim_options_from({"at": text})
    assert why in str(raised.value)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


async def status(client: Client) -> int:
    return (await client.ask(CHAT))[0]


async def becomes(client: Client, wanted: int) -> float:
    """Ask until the status is ``wanted``; the seconds that took."""
    start_s = time.monotonic()
    async with asyncio.timeout(5):
        while await status(client) != wanted:
            await asyncio.sleep(0.01)
    return time.monotonic() - start_s


async def test_changes_count_from_the_first_request():
    async with sim(at="0.3s:fault=503=1;0.6s:fault=503=0") as client:
        await asyncio.sleep(0.4)
        assert await status(client) == 200
        assert 0.2 < await becomes(client, 503) < 2
        assert 0.2 < await becomes(client, 200) < 2


async def test_a_limit_that_changes_keeps_what_is_used_of_it():
    async with sim(rpm="60", at="0.2s:rpm=6000") as client:
        for _ in range(30):
            assert await status(client) == 200
        headers = {}
        async with asyncio.timeout(5):
            while headers.get("x-ratelimit-limit-requests") != "6000":
                await asyncio.sleep(0.05)
                _, headers, _ = await client.ask(CHAT)
        assert 2000 < int(headers["x-ratelimit-remaining-requests"]) < 3500  # a half, as before


async def test_slots_that_come_later_let_others_wait():
    async with sim(latency="0.1", at="0.1s:slots=1;0.35s:slots=8") as client:
        ledger = client.server.ledger
        assert await status(client) == 200
        await asyncio.sleep(0.05)
        asked = [asyncio.create_task(status(client)) for _ in range(7)]
        await until(lambda: ledger.queued == 6)
        start_s = time.monotonic()
        assert await asyncio.gather(*asked) == [200] * 7
        assert time.monotonic() - start_s < 0.65  # one after the other would take 0.7 s


async def test_down_closes_connections_refuses_others_and_comes_back():
    async with sim(latency="0.05", at="0.2s:down=0.4s") as client:
        port = client.server.base_url
        assert await status(client) == 200
        held = asyncio.create_task(client.ask(CHAT, max_tokens=1))
        with pytest.raises(aiohttp.ClientError):
            async with asyncio.timeout(5):
                while True:
                    await status(client)
        start_s, refused = time.monotonic(), 0
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await status(client) == 200
                    break
                except aiohttp.ClientConnectorError:
                    refused += 1
                    await asyncio.sleep(0.02)
        assert refused > 3 and 0.2 < time.monotonic() - start_s < 2
        assert client.server.base_url == port
        await asyncio.gather(held, return_exceptions=True)
        assert client.server.ledger.in_flight == 0


async def test_what_is_in_work_when_nobody_is_there_any_more_is_not_billed():
    async with sim(slots="1", latency="0.5", at="0.1s:down=0.1s") as client:
        outcomes = await asyncio.gather(*(client.ask(CHAT) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(outcome, aiohttp.ClientError) for outcome in outcomes)
        ledger = client.server.ledger
        assert (ledger.billed, ledger.in_flight, ledger.queued) == (0, 0, 0)


async def test_stopped_while_it_is_down_it_ends():
    async with asyncio.timeout(5), sim(at="0s:down=1h") as client:
        await asyncio.gather(client.ask(CHAT), return_exceptions=True)
        await asyncio.sleep(0.05)
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.ask(CHAT)


async def test_the_ledger_tells_of_each_second():
    async with sim(rpm="3", **{"output-tokens": "10"}) as client:
        statuses = [await status(client) for _ in range(5)]
        async with client.session.get(f"{client.root}/ledger?times") as response:
            times = (await response.json())["times"]
        async with client.session.get(f"{client.root}/ledger?full&times") as response:
            assert {"times", "billed_by_prompt"} <= (await response.json()).keys()
        assert "times" not in client.server.ledger.snapshot()
    assert statuses == [200, 200, 200, 429, 429]
    assert abs(times["first_time_s"] - time.time()) < 5
    assert {name: sum(times[name]) for name in ("accepted", "refused", "answered")} == {
        "accepted": 3,
        "refused": 2,
        "answered": 3,
    }
    ledger = client.server.ledger
    assert sum(times["tokens"]) == ledger.billed_prompt_tokens + ledger.billed_completion_tokens


async def test_an_injected_429_is_a_refusal_and_takes_no_tokens():
    async with sim(fault="429=1") as client:
        assert await status(client) == 429
        times = client.server.ledger.times.snapshot()
    assert (sum(times["refused"]), sum(times["accepted"]), sum(times["tokens"])) == (1, 0, 0)


def test_each_second_has_one_number_and_a_day_is_the_end():
    times = Times()
    for at_s in (1000.0, 1000.9, 1003.0, 999.0, 1000.0 + MOST_SECONDS):
        times.add("accepted", at_s)
    times.add("tokens", 1001.5, 70)
    assert times.snapshot() == {
        "first_time_s": 1000.0,
        "accepted": [3, 0, 0, 1],
        "refused": [0, 0, 0, 0],
        "answered": [0, 0, 0, 0],
        "tokens": [0, 70, 0, 0],
    }


def test_before_the_first_request_there_are_no_times():
    times = Ledger().snapshot(times=True)["times"]
    assert times == {"first_time_s": None, "accepted": [], "refused": [], "answered": [], "tokens": []}
