"""Streams of every dialect over the wire: whole, silent half-way, silent from the start, each limit on its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from raw_server import QUICK, ask, chunked, says, serve, wired

from llmbatch.providers.anthropic import Anthropic
from llmbatch.providers.base import Provider
from llmbatch.providers.gemini import Gemini
from llmbatch.providers.openai_chat import OpenAIChat
from llmbatch.providers.openai_responses import OpenAIResponses
from llmbatch.records import Failure, Reply, Trace

FIXTURES = Path(__file__).parent.parent / "providers" / "fixtures"
STREAMS: dict[str, tuple[Provider, str]] = {
    "openai-chat": (OpenAIChat(), "oai_chat_stream.sse"),
    "openai-responses": (OpenAIResponses(), "oai_responses_stream.sse"),
    "anthropic": (Anthropic(None), "ant_stream.sse"),
    "gemini": (Gemini(), "gem_stream.sse"),
}
SSE = "text/event-stream"
every_dialect = pytest.mark.parametrize("name", list(STREAMS))


def recorded(name: str) -> tuple[Provider, bytes]:
    provider, file = STREAMS[name]
    return provider, (FIXTURES / name / file).read_bytes()


def beginning(raw: bytes) -> bytes:
    """The events up to the first that carries a part of the answer, and a little more."""
    return raw[: len(raw) * 2 // 3]


@every_dialect
async def test_a_whole_stream_gives_its_first_token_and_the_answer(name: str) -> None:
    provider, raw = recorded(name)
    trace = Trace()
    async with serve(says(chunked(*(raw[at : at + 7] for at in range(0, len(raw), 7)), content_type=SSE))) as server:
        async with wired(server.url, stream=True, provider=provider) as wire:
            reply = await ask(wire, trace=trace)
    assert isinstance(reply, Reply) and reply.usage.output_tokens, reply
    assert trace.attempts[0].first_token_s is not None


@every_dialect
async def test_silence_half_way_is_the_idle_limit_and_keeps_what_came(name: str) -> None:
    provider, raw = recorded(name)
    part = chunked(beginning(raw), content_type=SSE, last=b"")
    async with serve(says(part, 5.0)) as server:
        async with wired(server.url, stream=True, provider=provider, timeouts=replace(QUICK, idle_s=0.15)) as wire:
            failure = await ask(wire)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type) == ("ambiguous", "idle_timeout") and "--idle-timeout" in failure.message
    assert failure.body


@every_dialect
async def test_silence_from_the_start_is_the_first_token_limit(name: str) -> None:
    provider, _ = recorded(name)
    head = chunked(b": a comment is no sign of life\n\n", content_type=SSE, last=b"")
    async with serve(says(head, 5.0)) as server:
        times = replace(QUICK, first_token_s=0.15)
        async with wired(server.url, stream=True, provider=provider, timeouts=times) as wire:
            failure = await ask(wire)
    assert isinstance(failure, Failure)
    assert failure.type == "first_token_timeout" and "--first-token-timeout" in failure.message


@every_dialect
async def test_a_stream_that_drips_for_ever_is_the_total_limit(name: str) -> None:
    provider, raw = recorded(name)
    drip: list[bytes | float] = [chunked(beginning(raw), content_type=SSE, last=b"")]
    for _ in range(40):
        drip += [0.02, b"f\r\n: still here..\n\r\n"]
    async with serve(says(*drip, end="close")) as server:
        times = replace(QUICK, total_s=0.3)
        async with wired(server.url, stream=True, provider=provider, timeouts=times) as wire:
            failure = await ask(wire)
    assert isinstance(failure, Failure)
    assert failure.type == "timeout" and "--timeout" in failure.message, failure


@every_dialect
async def test_a_stream_cut_half_way_is_no_shorter_answer(name: str) -> None:
    provider, raw = recorded(name)
    for end, last in (("close", b""), ("reset", b""), ("keep", b"0\r\n\r\n")):
        async with serve(says(chunked(beginning(raw), content_type=SSE, last=last), end=end)) as server:
            async with wired(server.url, stream=True, provider=provider) as wire:
                failure = await ask(wire)
        assert isinstance(failure, Failure) and failure.maybe_billed and failure.retryable, (end, failure)
