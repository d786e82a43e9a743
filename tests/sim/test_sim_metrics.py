"""/metrics, read as Prometheus reads it."""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any

import pytest
from sim_wire import Client, endpoints, sim

from llmbatch.sim.http11 import HttpRequest
from llmbatch.sim.ledger import Ledger
from llmbatch.sim.metrics import CONTENT_TYPE, Metrics

CHAT = endpoints()["openai-chat"]
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\\n]*)"\})? (\S+)')
SUFFIXES = {"counter": {""}, "gauge": {""}, "histogram": {"_bucket", "_sum", "_count"}}


def exposition(text: str) -> dict[str, float]:
    """Samples by name and label, as ``name{value}``; the format is checked (text format 0.0.4)."""
    samples: dict[str, float] = {}
    assert text.endswith("\n")
    family, kind = "", ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert not any(name.startswith(f"{family}{{") or name == family for name in samples), (
                "one family, one place"
            )
            continue
        if line.startswith("# TYPE "):
            assert line.split(" ")[2] == family, "TYPE stands behind HELP of the same metric"
            kind = line.split(" ")[3]
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        name, label, value, number = match.groups()
        assert name.removeprefix(family) in SUFFIXES[kind], f"{name} stands under {family}"
        assert kind != "counter" or name.endswith("_total")
        key = name.removeprefix("llmbatch_sim_") + (f"{{{value}}}" if label else "")
        assert key not in samples, f"{key} is there twice"
        samples[key] = float(number.replace("Inf", "inf"))
    return samples


async def read_metrics(client: Client) -> dict[str, float]:
    async with client.session.get(client.root + "/metrics") as response:
        assert (response.status, response.headers["content-type"]) == (200, CONTENT_TYPE)
        return exposition(await response.text())


def test_latencies_fall_into_buckets_that_add_up():
    metrics = Metrics(Ledger(), began_s=10.0)
    for took_s in (0.0, 0.25, 0.2500001, 59.0, 1000.0):
        metrics.answered(200, took_s)
    metrics.answered(None, 0.1)
    metrics.answered(404)
    samples = exposition(metrics.text(12.5))
    buckets = {
        float(name.partition("{")[2].rstrip("}")): count
        for name, count in samples.items()
        if name.startswith("request_duration_seconds_bucket")
    }
    assert list(buckets) == sorted(buckets) and list(buckets.values()) == sorted(buckets.values())
    assert (buckets[0.01], buckets[0.1], buckets[0.25], buckets[0.5], buckets[60.0]) == (1, 2, 3, 4, 5)
    assert buckets[math.inf] == samples["request_duration_seconds_count"] == 6
    assert samples["request_duration_seconds_sum"] == pytest.approx(1059.6, abs=0.01)
    assert (samples["requests_total{200}"], samples["requests_total{404}"], samples["requests_total{none}"]) == (
        5,
        1,
        1,
    )
    assert samples["uptime_seconds"] == 2.5


@pytest.mark.parametrize(("method", "path", "ours"), [("GET", "/metrics", True), ("POST", "/metrics", False)])
def test_only_the_page_itself_is_answered(method: str, path: str, ours: bool):
    reply = Metrics(Ledger(), 0.0).reply(HttpRequest(method, path, "", {}, b""), 1.0, 1.0)
    assert (reply is not None) == ours


@pytest.mark.usefixtures("each_mode")
async def test_metrics_tell_what_the_ledger_tells():
    async with sim(models="m") as client:
        before = await read_metrics(client)
        assert before["billed_answers_total"] == 0
        statuses = [(await client.ask(CHAT, **fields))[0] for fields in ({}, {}, {"model": "other"})]
        assert statuses == [200, 200, 404]
        samples = await until(client, **{"requests_total{404}": 1, "request_duration_seconds_count": 2})
    assert samples["billed_answers_total"] == 2
    assert samples["requests_total{200}"] >= 3, "two answers and the first look at the metrics"
    assert (samples["requests_in_flight"], samples["queue_length"], samples["connections_open"]) == (0, 0, 1)
    assert 0 < samples["uptime_seconds"] < 60
    assert samples["threads"] >= 1


async def until(client: Client, **wanted: float) -> dict[str, float]:
    """The metrics, once they show what is wanted."""
    async with asyncio.timeout(10):
        while True:
            samples = await read_metrics(client)
            if all(samples[name] == value for name, value in wanted.items()):
                return samples


@pytest.mark.usefixtures("each_mode")
async def test_health_is_told_at_once_when_little_is_to_be_done():
    async with sim(latency="30", drain="0") as client:
        work = asyncio.create_task(client.ask(CHAT))
        await until(client, requests_in_flight=1)
        async with client.session.get(client.root + "/healthz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
    await ended(work)


async def test_an_event_loop_is_healthy_with_any_number_in_flight():
    async with sim(latency="30", drain="0") as client:
        work = [asyncio.create_task(client.ask(CHAT)) for _ in range(50)]
        await until(client, requests_in_flight=50, queue_length=0)
        async with client.session.get(client.root + "/healthz") as response:
            assert response.status == 200
    await ended(*work)


async def test_a_stalled_pool_keeps_the_health_check_waiting_and_says_so_in_its_metrics():
    async with sim(mode="threads", threads="2", latency="30", drain="0") as client:
        work = [asyncio.create_task(client.ask(CHAT)) for _ in range(2)]
        await until(client, worker_threads_busy=2)
        health = asyncio.create_task(client.session.get(client.root + "/healthz"))
        samples = await until(client, queue_length=1)
        assert samples["worker_threads"] == samples["worker_threads_busy"] == samples["requests_in_flight"] == 2
        assert not health.done()
    await ended(health, *work)


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Their server is gone."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Exception) for result in results)
