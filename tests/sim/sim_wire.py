"""A client for all dialects; it reads what the simulated provider sends as its documentation says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from llmbatch.sim.modes import open_server
from llmbatch.sim.options import sim_options_from
from llmbatch.sim.server import SimServer
from llmbatch.sim.threads_server import ThreadsServer

FIXTURES = Path(__file__).parent / "fixtures"
PROMPT = "The parcel came late."
# Of every server that a test starts; the fixture each_mode sets the mode here.
COMMON: dict[str, str] = {}
Server = SimServer | ThreadsServer


@dataclass(frozen=True)
class Endpoint:
    """One dialect: where it is, how ``PROMPT`` is asked for there, and where an answer has its text."""

    name: str
    path: str
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    stream_path: str | None = None

    def streamed(self) -> tuple[str, dict[str, Any]]:
        if self.stream_path:
            return self.stream_path, self.body
        return self.path, {**self.body, "stream": True}


def _messages(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}]


def _contents(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "parts": [{"text": prompt}]}]


def endpoints(prompt: str = PROMPT) -> dict[str, Endpoint]:
    """All dialects that answer with text, by name."""
    chat = {"model": "m", "messages": _messages(prompt)}
    found = [
        Endpoint("openai-chat", "/v1/chat/completions", chat),
        Endpoint("openai-responses", "/v1/responses", {"model": "m", "input": _messages(prompt)}),
        Endpoint("azure-chat", "/openai/v1/chat/completions", chat, {"api-key": "k"}),
        Endpoint("anthropic", "/v1/messages", {**chat, "max_tokens": 500}, {"anthropic-version": "2023-06-01"}),
        Endpoint(
            "gemini",
            "/v1beta/models/m:generateContent",
            {"contents": _contents(prompt)},
            {"x-goog-api-key": "k"},
            "/v1beta/models/m:streamGenerateContent?alt=sse",
        ),
    ]
    return {endpoint.name: endpoint for endpoint in found}


class Client:
    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session
        self.root = server.base_url.removesuffix("/v1")

    async def post(
        self, path: str, body: Any, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        async with self.session.post(self.root + path, json=body, headers=headers) as response:
            names = {name.lower(): value for name, value in response.headers.items()}
            return response.status, names, await response.read()

    async def ask(self, endpoint: Endpoint, **fields: Any) -> tuple[int, dict[str, str], Any]:
        """Status, headers, JSON body."""
        status, headers, data = await self.post(endpoint.path, {**endpoint.body, **fields}, endpoint.headers)
        return status, headers, json.loads(data)

    async def raw_stream(self, endpoint: Endpoint, **fields: Any) -> bytes:
        path, body = endpoint.streamed()
        status, headers, data = await self.post(path, {**body, **fields}, endpoint.headers)
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        return data


def sim_server(**settings: str) -> AbstractAsyncContextManager[Server]:
    return open_server(sim_options_from({**COMMON, **settings}))


@asynccontextmanager
async def sim(**settings: str) -> AsyncIterator[Client]:
    async with sim_server(**settings) as server, aiohttp.ClientSession() as session:
        yield Client(server, session)


async def bytes_of(client: Client, path: str, body: Any, headers: dict[str, str]) -> bytes:
    """Everything behind the head of the answer, read byte by byte from a bare socket, its chunks joined."""
    host, port = client.root.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps(body).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    writer.write(f"{head}Connection: close\r\n{lines}\r\n".encode() + data)
    got = b""
    async with asyncio.timeout(5):
        while byte := await reader.read(1):
            got += byte
    writer.close()
    await writer.wait_closed()
    return unchunked(got.partition(b"\r\n\r\n")[2])


def unchunked(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        assert data[length : length + 2] == b"\r\n"
        whole, data = whole + data[:length], data[length + 2 :]
    return whole


def events_of(data: bytes) -> list[tuple[str | None, str]]:
    """Name and data of every Server-Sent Event (HTML standard, section 9.2.6)."""
    events = []
    for block in data.decode().replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(" "))
        if "data" in fields:
            events.append((fields.get("event"), fields["data"]))
    return events


def text_of(name: str, body: Any) -> str:
    match name:
        case "openai-chat" | "azure-chat":
            return str(body["choices"][0]["message"]["content"])
        case "openai-responses":
            items = [item for item in body["output"] if item["type"] == "message"]
            return "".join(part["text"] for item in items for part in item["content"])
        case "anthropic":
            return "".join(block["text"] for block in body["content"] if block["type"] == "text")
    parts = body["candidates"][0]["content"].get("parts", [])
    return "".join(part["text"] for part in parts if "text" in part and not part.get("thought"))


def streamed_text(name: str, data: bytes) -> str:
    events = [json.loads(event) for _, event in events_of(data) if event != "[DONE]"]
    match name:
        case "openai-chat" | "azure-chat":
            deltas = [choice["delta"] for event in events for choice in event["choices"]]
            return "".join(delta.get("content", "") for delta in deltas)
        case "openai-responses":
            return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        case "anthropic":
            deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
            return "".join(delta.get("text", "") for delta in deltas)
    return "".join(text_of(name, event) for event in events)


def tokens_of(name: str, body: Any) -> tuple[int, int, int, int]:
    """Input with cached ones, output with reasoning, reasoning, cached."""
    match name:
        case "openai-chat" | "azure-chat":
            usage = body["usage"]
            return (
                usage["prompt_tokens"],
                usage["completion_tokens"],
                usage["completion_tokens_details"]["reasoning_tokens"],
                usage["prompt_tokens_details"]["cached_tokens"],
            )
        case "openai-responses":
            usage = body["usage"]
            return (
                usage["input_tokens"],
                usage["output_tokens"],
                usage["output_tokens_details"]["reasoning_tokens"],
                usage["input_tokens_details"]["cached_tokens"],
            )
        case "anthropic":
            usage = body["usage"]
            cached, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
            thinking = usage["output_tokens_details"]["thinking_tokens"]
            return usage["input_tokens"] + cached + written, usage["output_tokens"], thinking, cached
    usage = body["usageMetadata"]
    thoughts = usage.get("thoughtsTokenCount", 0)
    output = usage.get("candidatesTokenCount", 0) + thoughts
    return usage["promptTokenCount"], output, thoughts, usage.get("cachedContentTokenCount", 0)


def error_of(name: str, body: Any) -> tuple[Any, ...]:
    """What a client branches on."""
    error = body["error"]
    if name == "anthropic":
        assert body["type"] == "error" and body["request_id"].startswith("req_")
        return error["type"], error.get("details", {}).get("error_code")
    if name == "gemini":
        return error["code"], error["status"]
    if name == "azure-chat":
        return (error["code"],)
    assert set(error) == {"message", "type", "param", "code"}
    return error["type"], error["code"]
