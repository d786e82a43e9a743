"""The load on a server: clients that each keep one request in flight, and a health check that asks on its own clock.

A client whose answer does not come within `LIMIT_S` gives up, as real ones do, closes its connection and asks anew;
after a 503 it waits `AFTER_503_S`. What is still in flight when the time is over counts nowhere.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

LIMIT_S = 6.0
AFTER_503_S = 1.0
HEALTH_EVERY_S = 0.5
# Until then connections are made and queues begin to fill.
WARM_UP_S = 1.0
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
_LENGTH = re.compile(rb"content-length: (\d+)\r\n")
# Fewer than the kernel's queue of connections to accept.
_AT_ONCE = 500


@dataclass
class Load:
    """What came of one run: seconds of each good answer and health check, ``inf`` for those given up, and counts.

    ``metrics`` is the server's page at the end, ``client_cpu`` the share of a core that this side has used.
    """

    latencies_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    timeouts: int = 0
    refused: int = 0
    broken: int = 0
    client_cpu: float = 0.0
    metrics: str = ""


class Wire(asyncio.Protocol):
    """One connection: a request out, the status of its answer back."""

    def __init__(self) -> None:
        self._data = b""
        self._status: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    async def ask(self, request: bytes) -> int:
        """ConnectionError when the server closes without an answer."""
        self._data = b""
        self._status = asyncio.get_running_loop().create_future()
        self._transport.write(request)  # type: ignore[attr-defined]
        return await self._status

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._data += data
        head_end = self._data.find(b"\r\n\r\n")
        length = _LENGTH.search(self._data, 0, head_end + 2) if head_end > 0 else None
        if length and len(self._data) >= head_end + 4 + int(length[1]) and self._status and not self._status.done():
            self._status.set_result(int(self._data[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._status and not self._status.done():
            self._status.set_exception(ConnectionResetError("closed without an answer"))


async def put_under_load(port: int, clients: int, seconds: float) -> Load:
    """What ``clients`` saw of the server in so many seconds, from `WARM_UP_S` on."""
    load, loop = Load(), asyncio.get_running_loop()
    requests = _requests()
    gate = asyncio.Semaphore(_AT_ONCE)
    cpu_s = time.process_time()
    from_s = loop.time() + WARM_UP_S
    asking = [asyncio.create_task(_keep_asking(port, load, requests, gate, from_s)) for _ in range(clients)]
    probing = asyncio.create_task(_probe(port, load, from_s))
    await asyncio.sleep(WARM_UP_S + seconds)
    load.metrics = await asyncio.to_thread(_metrics, port)
    load.client_cpu = (time.process_time() - cpu_s) / (WARM_UP_S + seconds)
    for task in (*asking, probing):
        task.cancel()
    ended = await asyncio.gather(*asking, probing, return_exceptions=True)
    for bug in (end for end in ended if not isinstance(end, asyncio.CancelledError)):
        raise RuntimeError("a client has ended before its time") from (bug if isinstance(bug, Exception) else None)
    return load


def _requests() -> Iterator[bytes]:
    """Each with a prompt of its own, as the prompt decides what happens to it."""
    for number in itertools.count():
        message = {"role": "user", "content": f"Which number is {number:09}?"}
        body = json.dumps({"model": "m", "messages": [message]}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        yield head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _metrics(port: int) -> str:
    """They are told even while all threads are busy."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        return str(response.read().decode())


async def _connect(port: int) -> Wire:
    _, wire = await asyncio.get_running_loop().create_connection(Wire, "127.0.0.1", port)
    return wire


async def _keep_asking(
    port: int, load: Load, requests: Iterator[bytes], gate: asyncio.Semaphore, from_s: float
) -> None:
    wire: Wire | None = None
    loop = asyncio.get_running_loop()
    try:
        while True:
            began_s = loop.time()
            status = 0
            try:
                async with asyncio.timeout(LIMIT_S):
                    if wire is None:
                        async with gate:
                            wire = await _connect(port)
                    status = await wire.ask(next(requests))
            except TimeoutError:
                status = 408
            except OSError:
                await asyncio.sleep(0.01)  # a server that is gone shall not be stormed
            if status not in (200, 503) and wire is not None:
                wire.close()
                wire = None
            if loop.time() >= from_s:
                _count(load, status, loop.time() - began_s)
            if status == 503:
                await asyncio.sleep(AFTER_503_S)
    finally:
        if wire is not None:
            wire.close()


def _count(load: Load, status: int, took_s: float) -> None:
    load.timeouts += status == 408
    load.refused += status == 503
    load.broken += status not in (200, 408, 503)
    if status in (200, 408):
        load.latencies_s.append(took_s if status == 200 else math.inf)


async def _probe(port: int, load: Load, from_s: float) -> None:
    """Ask for the health every `HEALTH_EVERY_S`, whether or not the last one has been told."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(from_s - loop.time())
    async with asyncio.TaskGroup() as probes:
        while True:
            probes.create_task(_health(port, load))
            await asyncio.sleep(HEALTH_EVERY_S)


async def _health(port: int, load: Load) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    wire: Wire | None = None
    try:
        async with asyncio.timeout(LIMIT_S):
            wire = await _connect(port)
            await wire.ask(HEALTH)
        load.health_s.append(loop.time() - began_s)
    except (TimeoutError, OSError):
        load.health_s.append(math.inf)
    finally:
        if wire is not None:
            wire.close()
