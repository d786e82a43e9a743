"""Streams of every dialect over the wire: whole, silent half-way, silent from the start, each limit on its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from raw_server import QUICK, Script, ask, chunked, says, serve, wired

from llmbatch.options import Timeouts
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


def recorded(name: str) -> bytes:
    return (FIXTURES / name / STREAMS[name][1]).read_bytes()


def beginning(name: str) -> bytes:
    """Events up to the middle of the answer."""
    raw = recorded(name)
    return raw[: len(raw) * 2 // 3]


async def outcome(name: str, script: Script, times: Timeouts = QUICK, trace: Trace | None = None) -> Reply | Failure:
    """What the answer of ``script`` means in the dialect ``name``."""
    async with (
        serve(script) as server,
        wired(server.url, stream=True, provider=STREAMS[name][0], timeouts=times) as wire,
    ):
        return await ask(wire, trace=trace)


@every_dialect
async def test_a_whole_stream_gives_its_first_token_and_the_answer(name: str) -> None:
    raw, trace = recorded(name), Trace()
    pieces = (raw[at : at + 7] for at in range(0, len(raw), 7))
    reply = await outcome(name, says(chunked(*pieces, content_type=SSE)), trace=trace)
    assert isinstance(reply, Reply) and reply.usage.output_tokens, reply
    assert trace.attempts[0].first_token_s is not None


@every_dialect
async def test_silence_half_way_is_the_idle_limit_and_keeps_what_came(name: str) -> None:
    part = chunked(beginning(name), content_type=SSE, last=b"")
    failure = await outcome(name, says(part, 5.0), replace(QUICK, idle_s=0.15))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type) == ("ambiguous", "idle_timeout") and "--idle-timeout" in failure.message
    assert failure.body


@every_dialect
async def test_silence_from_the_start_is_the_first_token_limit(name: str) -> None:
    head = chunked(b": a comment is no sign of life\n\n", content_type=SSE, last=b"")
    failure = await outcome(name, says(head, 5.0), replace(QUICK, first_token_s=0.15))
    assert isinstance(failure, Failure)
    assert failure.type == "first_token_timeout" and "--first-token-timeout" in failure.message


@every_dialect
async def test_a_stream_that_drips_for_ever_is_the_total_limit(name: str) -> None:
    drip: list[bytes | float] = [chunked(beginning(name), content_type=SSE, last=b"")]
    for _ in range(40):
        drip += [0.02, b"f\r\n: still here..\n\r\n"]
    failure = await outcome(name, says(*drip, end="close"), replace(QUICK, total_s=0.3))
    assert isinstance(failure, Failure)
    assert failure.type == "timeout" and "--timeout" in failure.message, failure


@every_dialect
@pytest.mark.parametrize(("end", "last"), [("close", b""), ("reset", b""), ("keep", b"0\r\n\r\n")])
async def test_a_stream_cut_half_way_is_no_shorter_answer(name: str, end: str, last: bytes) -> None:
    failure = await outcome(name, says(chunked(beginning(name), content_type=SSE, last=last), end=end))
    assert isinstance(failure, Failure) and failure.maybe_billed and failure.retryable, failure
