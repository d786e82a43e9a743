"""A server that says exactly the bytes it is told to, and a wire to it."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from llmbatch.calls.connect import Proxy
from llmbatch.calls.deadlines import Watch
from llmbatch.calls.wire import Wire, open_session
from llmbatch.options import Timeouts
from llmbatch.providers.base import Provider
from llmbatch.providers.openai_chat import OpenAIChat
from llmbatch.providers.services import own_server
from llmbatch.providers.target import Target
from llmbatch.records import CallFailed, Failure, Reply, Request, Trace

KEY = "sk-canary-0123456789"
ASK = Request("m", [{"role": "user", "content": "the prompt"}])
QUICK = Timeouts(connect_s=2.0, first_token_s=5.0, idle_s=5.0, total_s=5.0)
ANSWER = b'{"model":"m1","choices":[{"message":{"content":"pong"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3}}'

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def http(body: bytes = ANSWER, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    """A whole answer; ``length`` is what Content-Length says instead of the truth."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(*chunks: bytes, content_type: str = "application/json", last: bytes = b"0\r\n\r\n") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + last


def says(*parts: bytes | float, end: str = "keep") -> Script:
    """Reads each request, then writes ``parts`` (a number is a pause in seconds); ``end``: keep, close or reset."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await read_request(reader):
            for part in parts:
                if isinstance(part, float):
                    await asyncio.sleep(part)
                else:
                    writer.write(part)
                    await writer.drain()
            if end == "reset":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            if end != "keep":
                return

    return script


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Head and body of one request; empty at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


@dataclass
class Server:
    url: str
    connections: int = 0
    at_once: int = 0
    most_at_once: int = 0
    errors: list[BaseException] = field(default_factory=list)


@asynccontextmanager
async def serve(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """A server on loopback that runs ``script`` for each connection."""
    seen = Server("")
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        seen.connections += 1
        seen.at_once += 1
        seen.most_at_once = max(seen.most_at_once, seen.at_once)
        try:
            await script(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        except Exception as error:
            seen.errors.append(error)
        finally:
            seen.at_once -= 1
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=2**26, backlog=1000, ssl=tls)
    seen.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions"
    try:
        yield seen
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not seen.errors, seen.errors


@asynccontextmanager
async def wired(
    url: str,
    *,
    stream: bool = False,
    timeouts: Timeouts = QUICK,
    proxy: Proxy | None = None,
    provider: Provider | None = None,
    **session_options: Any,
) -> AsyncIterator[Wire]:
    """A wire as a run has it, with its session and its watch."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    target = Target(provider or OpenAIChat(), url.removesuffix("/chat/completions"), "m", own_server(None))
    watch = Watch(min(timeouts.total_s, timeouts.idle_s, timeouts.first_token_s))
    watching = asyncio.create_task(watch.run())
    async with open_session(timeouts, **session_options) as session:
        try:
            clock = asyncio.get_running_loop().time
            yield Wire(session, target, headers, timeouts, watch, clock, stream=stream, proxy=proxy)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    await asyncio.sleep(0)


async def ask(wire: Wire, request: Request = ASK, trace: Trace | None = None) -> Reply | Failure:
    """One attempt. Whatever fails never shows the key."""
    trace = trace or Trace()
    try:
        reply = await wire(request, trace)
    except CallFailed as failed:
        shown = f"{failed!r} {failed.failure!r} {''.join(traceback.format_exception(failed))} {trace!r}"
        assert "canary" not in shown
        assert trace.attempts[-1].failure is failed.failure
        assert failed.failure.message and trace.attempts[-1].latency_s >= 0
        return failed.failure
    assert trace.attempts[-1].failure is None
    return reply


async def once(script: Script, *, stream: bool = False, timeouts: Timeouts = QUICK) -> Reply | Failure:
    """One attempt against one script."""
    async with serve(script) as server, wired(server.url, stream=stream, timeouts=timeouts) as wire:
        return await ask(wire)
