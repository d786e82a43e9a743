"""Structured answers: ``output`` is JSON that fits the schema, or the row is an error that says why not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmbatch.errors import OptionsError
from llmbatch.records import Result
from llmbatch.rules.answer import WRAP

from .processes import Done, Llmbatch, read_lines, write_rows

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
Answer = Callable[[dict[str, Any]], tuple[str, str]]


class Server:
    """Answers by ``answer``: the body of a request in, the text and its finish reason out."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.base_url = ""
        self.bodies: list[dict[str, Any]] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                body = json.loads(await reader.readexactly(int(length.split(b":")[1])))
                self.bodies.append(body)
                writer.write(_http(*self._answer(body)))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def _http(text: str, finish_reason: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    body = json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Server]:
    seen = Server(answer)
    server = await asyncio.start_server(seen.connected, "127.0.0.1", 0)
    seen.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield seen
    finally:
        server.close()


def wrong_first(body: dict[str, Any]) -> tuple[str, str]:
    """Row b is asked twice, row c never answers well, row d is cut."""
    prompt, turns = body["messages"][0]["content"], len(body["messages"])
    if prompt == "d":
        return '{"n":', "length"
    good = prompt == "a" or (prompt == "b" and turns > 1)
    return ('{"n": 7}' if good else '```json\n{"n": 12}\n```'), "stop"


async def run(llmbatch: Llmbatch, server: Server, *more: str, schema: Any = SCHEMA) -> Done:
    (llmbatch.directory / "schema.json").write_text(json.dumps(schema))
    write_rows(llmbatch.directory / "in.jsonl", [{"id": name, "prompt": name} for name in "abcd"])
    flags = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "--schema", "schema.json", *more)
    return await asyncio.to_thread(llmbatch, *flags)


def output(llmbatch: Llmbatch) -> Path:
    return llmbatch.directory / "in.results.jsonl"


async def test_wrong_first_and_right_second(llmbatch: Llmbatch) -> None:
    async with serving(wrong_first) as server:
        done = await run(llmbatch, server, "--summary-json", "summary.json")
        again = await run(llmbatch, server, "--limit", "2")
    assert done.code == 1, done.err
    first, second, third, fourth = read_lines(output(llmbatch))
    assert (first["output"], first["attempts"], first["usage"]["input_tokens"]) == ({"n": 7}, 1, 10)
    assert (second["output"], second["attempts"], second["usage"]["output_tokens"]) == ({"n": 7}, 2, 10)
    assert (third["status"], third["attempts"], third["usage"]["input_tokens"]) == ("error", 3, 30)
    error = third["error"]
    assert (error["type"], error["retryable"], error["maybe_billed"]) == ("schema_mismatch", False, False)
    assert "asked 3 times" in error["message"] and "$.n: 12 is greater than the maximum of 9" in error["message"]
    assert error["output_so_far"].startswith("```json")
    assert "ambiguous" not in third
    assert fourth["attempts"] == 1 and "raise max_tokens" in fourth["error"]["message"]
    asked_again = [body for body in server.bodies if len(body["messages"]) > 1]
    assert len(asked_again) >= 3
    assert asked_again[0]["messages"][1]["role"] == "assistant"
    assert all(body["response_format"]["json_schema"]["strict"] for body in server.bodies)
    summary = json.loads((llmbatch.directory / "summary.json").read_text())
    assert (summary["ok"], summary["failed"], summary["requests"], summary["ambiguous"]) == (2, 2, 7, 0)
    assert summary["input_tokens"] == 70
    assert again.code != 70, again.err


async def test_rows_without_a_fitting_answer_are_asked_again_by_the_next_run(llmbatch: Llmbatch) -> None:
    async with serving(wrong_first) as server:
        await run(llmbatch, server, "--schema-retries", "0")
        assert len(server.bodies) == 4
        done = await run(llmbatch, server, "--schema-retries", "1")
    assert len(server.bodies) == 4 + 2 + 2 + 1  # b and c twice, d once; a is done
    assert done.code == 1
    assert [line["status"] for line in read_lines(output(llmbatch))] == ["ok", "ok", "error", "error"]


async def test_a_changed_schema_changes_the_rows(llmbatch: Llmbatch) -> None:
    """Also where the request stays as it is but for what is only checked here."""
    loose = {"type": "array", "items": {"type": "integer"}}
    async with serving(lambda body: ('{"answer": [1, 1]}', "stop")) as server:
        assert (await run(llmbatch, server, schema=loose)).code == 0
        assert [line["output"] for line in read_lines(output(llmbatch))] == [[1, 1]] * 4
        assert WRAP in server.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]
        refused = await run(llmbatch, server, schema={**loose, "x-note": "not sent"})
        assert refused.code == 2 and "4 finished rows changed" in refused.err
        assert (await run(llmbatch, server, schema=loose)).code == 0
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "--schema schema.json: No such file"),
        ("{", "--schema schema.json: it is no JSON"),
        ("[1]", "--schema schema.json: it is no JSON object"),
        ('{"type": "strin"}', "$.type"),
        ('{"items": {"$ref": "http://127.0.0.1:1/x"}}', "$.items refers to"),
    ],
)
def test_a_bad_schema_is_refused_before_anything_is_sent(llmbatch: Llmbatch, text: str | None, said: str) -> None:
    if text is not None:
        (llmbatch.directory / "schema.json").write_text(text)
    write_rows(llmbatch.directory / "in.jsonl", ["a"])
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", "http://127.0.0.1:9/v1", "--schema", "schema.json")
    assert done.code == 2 and said in " ".join(done.err.split()), done.err
    assert not output(llmbatch).exists()


async def test_from_python() -> None:
    import llmbatch as library

    async with serving(wrong_first) as server:
        rows = library.stream(["a", "b"], model="m", base_url=server.base_url, schema=SCHEMA)
        results: list[Result] = [result async for result in rows]
        with pytest.raises(OptionsError, match="no valid JSON Schema"):
            [result async for result in library.stream(["a"], model="m", base_url=server.base_url, schema={"type": 5})]
    assert [result.output for result in results] == [{"n": 7}] * 2
