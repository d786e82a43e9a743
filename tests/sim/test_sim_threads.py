"""What is true of the blocking server alone: a pool, a queue, and who waits for whom."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sim_wire import Client, Endpoint, endpoints, error_of, sim, sim_server
from test_sim_metrics import ended, read_metrics, until

import llmbatch
from llmbatch.sim.answers import prompt_hash
from llmbatch.sim.options import sim_options_from
from llmbatch.sim.threads_connection import Done
from llmbatch.sim.threads_front import Front
from llmbatch.sim.threads_server import ThreadsServer

ROOT = Path(__file__).parents[2]
HEALTH = b"GET /healthz HTTP/1.1\r\n\r\n"


def chat(prompt: str) -> Endpoint:
    return endpoints(prompt)["openai-chat"]


def asked(client: Client, *prompts: str) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(client.ask(chat(prompt))) for prompt in prompts]


def address(server: ThreadsServer) -> tuple[str, int]:
    host, port = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    return host, int(port)


async def test_throughput_is_the_number_of_threads_by_the_latency():
    """Little's law: six requests of 0.1 s on two threads take three rounds."""
    async with sim(mode="threads", threads="2", latency="0.1") as client:
        began_s = time.perf_counter()
        answers = await asyncio.gather(*asked(client, *"abcdef"))
        took_s = time.perf_counter() - began_s
        assert [status for status, _, _ in answers] == [200] * 6
        assert client.server.ledger.peak_in_flight == 2
        samples = await until(client, request_duration_seconds_count=6)
    assert took_s >= 0.3
    assert samples["request_duration_seconds_sum"] >= 2 * (0.1 + 0.2 + 0.3), "the time in the queue is part of it"


async def test_a_run_has_it_inside():
    settings = {"mode": "threads", "threads": "2", "latency": "0.1"}
    began_s = time.perf_counter()
    results = [
        result async for result in llmbatch.stream(list("abcdef"), model="sim/demo", concurrency=6, sim=settings)
    ]
    assert all(result.ok for result in results)
    assert time.perf_counter() - began_s >= 0.3


def test_idle_connections_hold_no_thread():
    with ThreadsServer(sim_options_from({"mode": "threads", "threads": "1"})) as server, ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(socket.create_connection(address(server), timeout=5))
            connection.sendall(HEALTH)
            assert connection.recv(4096).endswith(b'{"status":"ok"}')
        assert server.ledger.connections == 5


async def test_connections_are_kept():
    async with sim(mode="threads", threads="1") as client:
        for number in range(3):
            assert (await client.ask(chat(f"{number}")))[0] == 200
        assert client.server.ledger.peak_connections == 1


@pytest.mark.parametrize("name", list(endpoints()))
async def test_who_finds_the_server_full_is_refused_before_the_queue(name: str):
    settings = {"threads": "1", "latency": "30", "drain": "0", "max-inflight": "3", "retry-after": "1"}
    async with sim(mode="threads", **settings) as client:
        work = asked(client, "a", "b", "c")
        await until(client, requests_in_flight=1, queue_length=2)
        status, headers, body = await client.ask(endpoints("one too many")[name])
        assert (status, headers["retry-after"]) == (503, "1")
        assert error_of(name, body)
        assert (await read_metrics(client))["requests_total{503}"] == 1
        health = asyncio.create_task(client.session.get(client.root + "/healthz"))
        await until(client, queue_length=3)  # no request to a model: it is let in, and waits
        assert client.server.ledger.rejected == {503: 1}
    await ended(health, *work)


async def test_a_stalled_answer_holds_its_thread_until_the_client_leaves(tmp_path: Path):
    script = tmp_path / "script.jsonl"
    script.write_text('{"n": 1, "fault": "stall"}')
    async with sim(mode="threads", threads="1", script=str(script)) as client:
        [stalled] = asked(client, "stalled")
        await until(client, worker_threads_busy=1)
        [behind] = asked(client, "behind")
        await until(client, queue_length=1)
        stalled.cancel()
        assert (await behind)[0] == 200


async def test_nobody_tells_the_queue_that_a_client_has_left():
    async with sim(mode="threads", threads="1", latency="0.1") as client:
        first, second = asked(client, "first", "second")
        await until(client, queue_length=1)
        second.cancel()
        assert (await first)[0] == 200
        await until(client, billed_answers_total=2, unread_answers_total=1)
        assert client.server.ledger.unread_by_prompt == {prompt_hash("second"): 1}


async def test_leaving_answers_what_is_queued():
    async with aiohttp.ClientSession() as session:
        async with sim_server(mode="threads", threads="1", latency="0.05") as server:
            client = Client(server, session)
            work = asked(client, *"abc")
            await until(client, queue_length=2)
        assert [status for status, _, _ in await asyncio.gather(*work)] == [200] * 3


def question(prompt: str) -> bytes:
    body = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % prompt.encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def wait_for(server: ThreadsServer, sample: str) -> None:
    """Return when the metrics have that line."""
    while True:
        with urllib.request.urlopen(server.base_url.removesuffix("/v1") + "/metrics", timeout=10) as response:
            if f"llmbatch_sim_{sample}\n" in response.read().decode():
                return


def test_a_client_that_does_not_read_holds_up_no_drain():
    settings = {"mode": "threads", "threads": "1", "output-tokens": "5000000", "drain": "0.05"}
    with ExitStack() as stack:
        with ThreadsServer(sim_options_from(settings)) as server:
            deaf, behind = (stack.enter_context(socket.create_connection(address(server))) for _ in range(2))
            deaf.sendall(question("a"))
            assert deaf.recv(1) == b"H"
            behind.sendall(question("b"))
            wait_for(server, "queue_length 1")
        assert server.ledger.billed_by_prompt == {prompt_hash("a"): 1}, "what was not begun is not billed"
    assert (server.ledger.connections, server.ledger.in_flight) == (0, 0)


@pytest.mark.parametrize(("read_bytes", "unread"), [(1 << 20, 0), (1, 1)])
def test_who_leaves_before_the_worker_is_done_may_have_read_it_all(
    monkeypatch: pytest.MonkeyPatch, read_bytes: int, unread: int
):
    give_back = Front.give_back

    def late(front: Front, done: Done) -> None:
        assert done.connection.left.wait(10)
        give_back(front, done)

    monkeypatch.setattr(Front, "give_back", late)
    with ThreadsServer(sim_options_from({"mode": "threads", "threads": "1"})) as server:
        with socket.create_connection(address(server), timeout=10) as connection:
            connection.sendall(question("a"))
            connection.recv(read_bytes)
        wait_for(server, "connections_open 1")  # the one that asks
    assert server.ledger.unread_by_prompt.total() == unread


def test_requests_that_pile_up_stay_in_the_kernel():
    settings = {"mode": "threads", "threads": "1", "latency": "60", "drain": "0"}
    with (
        ThreadsServer(sim_options_from(settings)) as server,
        socket.create_connection(address(server), timeout=0.5) as connection,
        pytest.raises(TimeoutError),
    ):
        for _ in range(1000):
            connection.sendall(question("a" * 100_000))


def test_a_client_that_reads_no_metrics_is_cut_off():
    with ThreadsServer(sim_options_from({"mode": "threads"})) as server:
        with socket.create_connection(address(server), timeout=10) as deaf, pytest.raises(ConnectionError):
            for _ in range(200):
                deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" * 1000)
        with socket.create_connection(address(server), timeout=10) as connection:
            connection.sendall(HEALTH)
            assert connection.recv(4096).endswith(b'{"status":"ok"}')


def test_leaving_ends_every_thread():
    before = threading.active_count()
    with ThreadsServer(sim_options_from({"mode": "threads", "threads": "7"})):
        assert threading.active_count() == before + 8, "seven workers and the front"
    assert threading.active_count() == before


def limited(ulimit: str, *arguments: str) -> subprocess.Popen[str]:
    """`llmbatch sim --mode threads` under a limit of the shell."""
    command = f"ulimit {ulimit}; exec {sys.executable} -m llmbatch sim --port 0 --mode threads {' '.join(arguments)}"
    return subprocess.Popen(["sh", "-c", command], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS limits no address space")
def test_more_threads_than_there_can_be_exit_5():
    process = limited("-v 2000000", "--threads", "5000")
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 5
    assert "can not start so many threads (--threads 5000)" in stderr


def test_out_of_files_it_accepts_again_when_some_are_free():
    process = limited("-n 40")
    try:
        assert process.stdout
        base_url = process.stdout.readline().split()[-1]
        port = int(base_url.removesuffix("/v1").rpartition(":")[2])
        with ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        with urllib.request.urlopen(base_url.removesuffix("/v1") + "/healthz", timeout=10) as response:
            assert response.status == 200
    finally:
        process.kill()
        process.communicate()
