"""The floor: the least a file-to-file run over aiohttp can cost. What llmbatch adds is measured against it.

    python benchmarks/floor.py INPUT OUTPUT http://127.0.0.1:8080/v1/chat/completions -c 64

C workers share one iterator over the rows; each posts a chat completion and writes the answer. There are no
retries, no limits, no checkpoint, no timeouts and no checks beyond the status: only what no client can leave out,
with every public setting of aiohttp, uvloop, orjson and the collector that was measured to help.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import aiohttp
import orjson
import uvloop
from yarl import URL

# The collector walks every live object again and again; with thousands of requests alive that costs a third of the run.
GC_THRESHOLDS = (50_000, 50, 1000)
OUTPUT_BUFFER_BYTES = 2**20
# All at once, 10,000 workers would open every connection before the first request is written, 1.3 s later.
START_STEP = 50
# Sent as they are, for all requests alike: aiohttp then computes none of its own.
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer bench", "Accept": "application/json"}
SKIPPED_HEADERS = ("Accept-Encoding", "User-Agent")


def chat_body(prompt: str) -> bytes:
    """The least chat completion body that is valid."""
    return orjson.dumps({"model": "bench", "messages": [{"role": "user", "content": prompt}]})


def result_line(number: int, row_id: str | None, answer: bytes) -> bytes:
    """One line of output: the text and the usage of a complete answer."""
    reply = orjson.loads(answer)
    output = reply["choices"][0]["message"]["content"]
    line = {"id": row_id, "row": number, "status": "ok", "output": output, "usage": reply["usage"]}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


async def work(session: aiohttp.ClientSession, url: URL, rows: Iterator[tuple[int, bytes]], out: IO[bytes]) -> int:
    """Take rows until there are none; return how many failed."""
    failed = 0
    for number, line in rows:
        row = orjson.loads(line)
        try:
            response = await session.post(url, data=chat_body(row["prompt"]))
            answer = await response.read()
        except (aiohttp.ClientError, OSError):
            failed += 1
            continue
        if response.status == 200:
            out.write(result_line(number, row.get("id"), answer))
        else:
            failed += 1
    return failed


def open_session(concurrency: int) -> aiohttp.ClientSession:
    """One pool as large as the concurrency, no cookies, no timers, names resolved once."""
    connector = aiohttp.TCPConnector(
        limit=concurrency, ttl_dns_cache=None, keepalive_timeout=3600, happy_eyeballs_delay=None
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        headers=HEADERS,
        skip_auto_headers=SKIPPED_HEADERS,
        auto_decompress=False,
    )


async def run(input_path: Path, output_path: Path, url: str, concurrency: int) -> int:
    """Send every row of the input; return how many failed."""
    with input_path.open("rb") as source, output_path.open("wb", buffering=OUTPUT_BUFFER_BYTES) as out:
        rows = iter(enumerate(source, start=1))
        async with open_session(concurrency) as session, asyncio.TaskGroup() as workers:
            tasks = []
            for number in range(concurrency):
                tasks.append(workers.create_task(work(session, URL(url), rows, out)))
                if number % START_STEP == 0:
                    await asyncio.sleep(0)
        return sum(task.result() for task in tasks)


def raise_file_limit() -> None:
    """A connection is a file: the soft limit is often 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def client_arguments(description: str | None) -> argparse.Namespace:
    """What every client of these benchmarks is told: input, output, URL and concurrency."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("url")
    parser.add_argument("-c", "--concurrency", type=int, default=64)
    return parser.parse_args()


def main() -> int:
    options = client_arguments(__doc__)
    raise_file_limit()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        failed = runner.run(run(options.input, options.output, options.url, options.concurrency))
    print(f"{failed} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
