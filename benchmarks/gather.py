"""The usual recipe, for comparison: one task per row, a semaphore, and gather, over one aiohttp session.

python benchmarks/gather.py INPUT OUTPUT http://127.0.0.1:8080/v1/chat/completions -c 64
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
import orjson
import uvloop
from floor import chat_body, client_arguments, raise_file_limit, result_line


async def ask(session: aiohttp.ClientSession, url: str, gate: asyncio.Semaphore, number: int, line: bytes) -> bytes:
    row = orjson.loads(line)
    async with gate, session.post(url, data=chat_body(row["prompt"])) as response:
        response.raise_for_status()
        return result_line(number, row.get("id"), await response.read())


async def run(input_path: Path, output_path: Path, url: str, concurrency: int) -> None:
    gate = asyncio.Semaphore(concurrency)
    connector = aiohttp.TCPConnector(limit=concurrency)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        rows = input_path.read_bytes().splitlines()
        tasks = [ask(session, url, gate, number, line) for number, line in enumerate(rows, start=1)]
        results = await asyncio.gather(*tasks)
    output_path.write_bytes(b"".join(results))


def main() -> int:
    options = client_arguments(__doc__)
    raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(options.input, options.output, options.url, options.concurrency))
    return 0


if __name__ == "__main__":
    sys.exit(main())
