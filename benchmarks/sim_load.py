"""How much the simulated provider bears: requests per second on one core, and 10,000 open connections at once.

    python benchmarks/sim_load.py [--seconds 4] [--connections 10000]

The server runs in a process of its own, bound to the first core; this process, bound to the last, is the client: a bare
asyncio.Protocol that costs less than the server. Each part takes about ten seconds at most. Exit code 1 when a target
is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import uvloop

ROOT = Path(__file__).resolve().parent.parent
TARGET_RPS = 5_000
BODY = json.dumps(
    {
        "model": "m",
        "messages": [{"role": "user", "content": "Classify: The parcel came late but the support team was kind."}],
        "max_tokens": 50,
    }
).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer none\r\nAccept: application/json\r\nUser-Agent: sim_load\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
) + BODY
LENGTH = re.compile(rb"content-length: (\d+)\r\n")
SERVE = (
    "import sys, os; os.sched_setaffinity(0, {0}) if hasattr(os, 'sched_setaffinity') else None;"
    "from llmbatch.sim.options import sim_options_from; from llmbatch.sim.serve import serve;"
    "serve(sim_options_from(dict(a.split('=', 1) for a in sys.argv[1:])), lambda url: print(url, flush=True))"
)


class Asker(asyncio.Protocol):
    """Sends a request, waits for its whole answer, and asks ``again`` whether to send the next."""

    def __init__(self, again: Callable[[bool], bool], ended: Callable[[], None]) -> None:
        self._again = again
        self._ended = ended
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head_end = self._data.find(b"\r\n\r\n")
        length = LENGTH.search(self._data, 0, head_end + 2) if head_end > 0 else None
        if length is None or len(self._data) < head_end + 4 + int(length[1]):
            return
        ok = self._data.startswith(b"HTTP/1.1 200 ")
        self._data = b""
        if self._again(ok):
            self._transport.write(REQUEST)
        else:
            self._ended()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended()


async def ask(port: int, connections: int, seconds: float, once: bool) -> tuple[int, float]:
    """Good answers and the time they took, over ``connections`` that stay open to the end."""
    loop = asyncio.get_running_loop()
    done = [0]
    open_ = set(range(connections))
    over = asyncio.Event()
    deadline_s = loop.time() + seconds

    def again(ok: bool) -> bool:
        done[0] += ok
        return not once and loop.time() < deadline_s

    def ended(number: int) -> None:
        open_.discard(number)
        if not open_:
            over.set()

    async def connect(number: int) -> asyncio.BaseTransport:
        async with gate:
            asker = Asker(again, lambda: ended(number))
            return (await loop.create_connection(lambda: asker, "127.0.0.1", port))[0]

    gate = asyncio.Semaphore(500)  # fewer than the kernel's queue of connections to accept
    began_s = time.perf_counter()
    transports = await asyncio.gather(*map(connect, range(connections)))
    with suppress(TimeoutError):
        async with asyncio.timeout(15):
            await over.wait()
    wall_s = time.perf_counter() - began_s
    for transport in transports:
        transport.close()
    return done[0], wall_s


@contextmanager
def server(**settings: object) -> Iterator[tuple[int, Callable[[], tuple[float, float]]]]:
    """A port, and a function that stops the server and tells its CPU seconds and peak memory in MB."""
    arguments = [f"{name}={value}" for name, value in settings.items()]
    process = subprocess.Popen([sys.executable, "-c", SERVE, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def stop() -> tuple[float, float]:
        process.terminate()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        per_mb = 2**20 if sys.platform == "darwin" else 2**10
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / per_mb

    try:
        assert process.stdout
        yield int(process.stdout.readline().rstrip().removesuffix("/v1").rpartition(":")[2]), stop
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def measure(title: str, connections: int, seconds: float, once: bool, **settings: object) -> int:
    """Print one line of the table; the good answers per second."""
    with server(**settings) as (port, stop):
        answers, wall_s = uvloop.run(ask(port, connections, seconds, once))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ledger", timeout=5) as response:
            ledger = json.load(response)
        cpu_s, peak_mb = stop()
    print(
        f"{title:<34}{answers:>9,}{answers / wall_s:>11,.0f}{wall_s:>8.2f}{cpu_s * 1000 / max(1, answers):>12.3f}"
        f"{peak_mb:>9.0f}{ledger['peak_in_flight']:>11,}{ledger['peak_connections']:>13,}",
        flush=True,
    )
    return int(answers / wall_s) if not once else min(answers, ledger["peak_in_flight"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, default=10_000)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    columns = ("answers", "answers/s", "wall s", "CPU ms each", "peak MB", "in flight", "connections")
    print(" " * 34 + "{:>9}{:>11}{:>8}{:>12}{:>9}{:>11}{:>13}".format(*columns))
    rps = measure("64 connections, no delay", 64, options.seconds, False)
    measure("the same, limits and faults on", 64, options.seconds, False, rpm=1e9, tpm=1e12, fault="500=0.01")
    held = measure(f"{options.connections:,} connections, 4 s each", options.connections, 4, True, latency=4)
    return int(rps < TARGET_RPS or held < options.connections)


if __name__ == "__main__":
    sys.exit(main())
