"""The floor that llmbatch is measured against must itself do the whole work."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

FLOOR = Path(__file__).parents[1] / "benchmarks" / "floor.py"


@dataclass
class Server:
    """Holds each request until ``gate`` of them are there at once, then answers with the prompt."""

    gate: int
    url: str = ""
    in_flight: int = 0
    peak: int = 0
    prompts: list[str] = field(default_factory=list)
    full: asyncio.Event = field(default_factory=asyncio.Event)

    async def chat(self, request: web.Request) -> web.Response:
        prompt = (await request.json())["messages"][0]["content"]
        self.prompts.append(prompt)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        if self.in_flight == self.gate:
            self.full.set()
        await self.full.wait()
        self.in_flight -= 1
        if prompt == "refuse":
            return web.json_response({"error": {"message": "no"}}, status=400)
        reply = {"choices": [{"message": {"content": prompt.upper()}}], "usage": {"total_tokens": 2}}
        return web.json_response(reply)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    state = Server(gate=4)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", state.chat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    state.url = f"http://127.0.0.1:{port}/v1/chat/completions"
    yield state
    await runner.cleanup()


async def floor(server: Server, folder: Path, prompts: list[str]) -> tuple[int, str, list[dict[str, object]]]:
    """Run the floor with 4 in flight; its exit code, its standard error and its results."""
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(f"{json.dumps({'id': f'id-{prompt}', 'prompt': prompt})}\n" for prompt in prompts))
    command = [str(FLOOR), str(source), str(output), server.url, "-c", "4"]
    child = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=asyncio.subprocess.PIPE)
    _, stderr = await asyncio.wait_for(child.communicate(), timeout=30)
    assert child.returncode is not None
    return child.returncode, stderr.decode(), [json.loads(line) for line in output.read_text().splitlines()]


async def test_floor_answers_every_row_once_with_as_many_in_flight_as_asked(server: Server, tmp_path: Path) -> None:
    prompts = [f"row {number}" for number in range(1, 21)]
    code, stderr, results = await floor(server, tmp_path, prompts)
    assert (code, stderr) == (0, "0 failed\n")
    assert sorted(server.prompts) == sorted(prompts)
    assert server.peak == 4
    expected = {(number, f"id-row {number}", f"ROW {number}", "ok") for number in range(1, 21)}
    assert {(line["row"], line["id"], line["output"], line["status"]) for line in results} == expected
    assert len(results) == 20


async def test_floor_counts_a_refused_row_and_goes_on(server: Server, tmp_path: Path) -> None:
    code, stderr, results = await floor(server, tmp_path, ["a", "refuse", "b", "c", "d"])
    assert (code, stderr) == (1, "1 failed\n")
    assert sorted(str(line["output"]) for line in results) == ["A", "B", "C", "D"]
