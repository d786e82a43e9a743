"""Which dialect can do what: one test a cell, and the table of it in the README, which is made from here.

Each cell sends real requests over loopback to the simulated provider, which was written from the documentation.
``python -m tests.dialects.features`` prints the table.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmbatch.records import Result
from llmbatch.sim.answers import expected_answer

PROMPT = "What is the capital of France?"
LONG = "You label reviews. " + "Here is one more example of a review and its label. " * 200
SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"enum": ["good", "bad", "mixed"]},
        "score": {"type": "integer", "minimum": 0},
        "reasons": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["label", "score"],
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True)
class Dialect:
    """A column of the table: how to ask for it, and where. ``chat`` is False for embeddings."""

    title: str
    model: str
    api: str
    base: str = "/v1"
    chat: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


KEY = {"AZURE_OPENAI_API_KEY": "test-key"}
DIALECTS = (
    Dialect("OpenAI Chat", "sim/demo", "openai-chat"),
    Dialect("OpenAI Responses", "sim/demo", "openai-responses"),
    Dialect("Anthropic", "sim/claude-haiku-5-5", "anthropic"),
    Dialect("Gemini", "sim/demo", "gemini"),
    Dialect("Azure v1", "azure/demo", "", environment={**KEY, "AZURE_OPENAI_ENDPOINT": "{origin}"}),
    Dialect(
        "Azure dated",
        "azure/demo",
        "",
        settings={"api_version": "2024-10-21"},
        environment={**KEY, "AZURE_OPENAI_ENDPOINT": "{origin}"},
    ),
    Dialect("OpenAI Embeddings", "sim/demo", "openai-embeddings", chat=False),
    Dialect("Gemini Embeddings", "sim/demo", "gemini-embeddings", chat=False),
)

Ask = Callable[..., Awaitable[list[Result]]]
"""``await ask(rows, sim={...}, **settings)``: the results in the order of the rows."""


def png(width: int = 2, height: int = 2) -> bytes:
    """A white picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + b"\xff" * width for _ in range(height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


async def plain(dialect: Dialect, ask: Ask) -> None:
    (result,) = await ask([{"system": "Be brief.", "prompt": PROMPT, "max_tokens": 500}])
    assert result.ok, result.failure
    assert result.output == expected_answer(PROMPT)
    assert result.reply is not None and result.reply.finish_reason == "stop"
    assert result.reply.usage.input_tokens and result.reply.usage.output_tokens
    (cut,) = await ask([{"prompt": PROMPT, "max_tokens": 2}])
    assert cut.reply is not None and cut.reply.finish_reason == "length"
    assert cut.output == expected_answer(PROMPT)[:8]


async def stream(dialect: Dialect, ask: Ask) -> None:
    results = await ask([PROMPT, "Grüße 🎉"], sim={"latency": "0.05", "tokens-per-s": "500"}, stream=True)
    assert [result.output for result in results] == [expected_answer(PROMPT), expected_answer("Grüße 🎉")]
    for result in results:
        assert result.reply is not None and result.reply.finish_reason == "stop"
        assert result.first_token_s is not None and result.latency_s is not None
        assert result.first_token_s < result.latency_s
        assert result.reply.usage.input_tokens and result.reply.usage.output_tokens


async def schema(dialect: Dialect, ask: Ask) -> None:
    (result,) = await ask([PROMPT], schema=SCHEMA)
    assert result.ok, result.failure
    assert result.output["label"] == "good" and isinstance(result.output["score"], int)
    assert result.attempts == 1, "held to the schema by the server, not asked again"


async def tools(dialect: Dialect, ask: Ask) -> None:
    (result,) = await ask([{"prompt": PROMPT, "tools": [TOOL], "tool_choice": "required"}])
    assert result.reply is not None, result.failure
    assert result.reply.finish_reason == "tool_calls" and result.reply.tool_calls
    call = result.reply.tool_calls[0]
    assert call["type"] == "function" and call["id"] and call["function"]["name"] == "weather"
    assert isinstance(json.loads(call["function"]["arguments"])["city"], str)
    answered = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": None, "tool_calls": list(result.reply.tool_calls)},
        {"role": "tool", "tool_call_id": call["id"], "content": '{"weather": "sunny"}'},
        {"role": "user", "content": "And now?"},
    ]
    (after,) = await ask([{"messages": answered, "tools": [TOOL]}])
    assert after.ok and after.output == expected_answer("And now?"), after.failure


async def images(dialect: Dialect, ask: Ask) -> None:
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    text = {"type": "text", "text": PROMPT}
    without, with_one = await ask(
        [
            {"messages": [{"role": "user", "content": [text]}]},
            {"messages": [{"role": "user", "content": [text, {"type": "image_url", "image_url": {"url": url}}]}]},
        ]
    )
    assert without.reply is not None and with_one.reply is not None, with_one.failure
    tokens = [reply.usage.input_tokens or 0 for reply in (without.reply, with_one.reply)]
    assert tokens[1] > tokens[0], "the picture has arrived, and is paid for"


async def embeddings(dialect: Dialect, ask: Ask) -> None:
    one, many, same = await ask([{"input": "one"}, {"input": ["one", "two"]}, {"prompt": "one"}])
    assert one.ok and many.ok and same.ok, (one.failure, many.failure, same.failure)
    assert all(isinstance(value, float) for value in one.output) and len(one.output) >= 8
    assert many.output[0] == one.output == same.output and many.output[1] != one.output


async def usage(dialect: Dialect, ask: Ask) -> None:
    # Anthropic thinks and caches only where it is told to: both cost money.
    anthropic = dialect.api == "anthropic"
    params = {"thinking": {"type": "adaptive"}} if anthropic else {"reasoning_effort": "low"}
    rows: list[Any] = [{"system": LONG, "prompt": f"{PROMPT} {number}", "params": params} for number in range(2)]
    if not dialect.chat:
        rows = [{"input": PROMPT}]
    results = await ask(rows, concurrency=1, cache_prompt=anthropic)
    for result in results:
        assert result.reply is not None and result.reply.usage.input_tokens, result.failure
    if dialect.chat:
        last = results[-1].reply
        assert last is not None
        assert last.usage.reasoning_tokens and last.usage.output_tokens
        assert last.usage.reasoning_tokens < last.usage.output_tokens
        assert last.usage.cached_input_tokens and last.usage.input_tokens
        assert 1000 < last.usage.cached_input_tokens < last.usage.input_tokens


async def errors(dialect: Dialect, ask: Ask) -> None:
    row = {"prompt": PROMPT} if dialect.chat else {"input": PROMPT}
    (limited,) = await ask([row], sim={"script": '{"n": 1, "fault": "429"}', "retry-after": "0.05"})
    assert limited.ok and limited.attempts == 2, limited.failure
    (broken,) = await ask([row], sim={"script": '{"n": 1, "fault": "500"}'})
    assert broken.ok and broken.attempts == 2, broken.failure
    for fault, word in (("context", "context_length_exceeded"), ("404", "model_not_found")):
        (failed,) = await ask([row], sim={"fault": f"{fault}=1"})
        assert failed.failure is not None and failed.failure.type == word, failed.failure
        assert failed.attempts == 1
    for fault in ("401", "quota"):
        (fatal,) = await ask([row], sim={"fault": f"{fault}=1"})
        assert fatal.failure is not None and fatal.failure.fatal, fatal.failure


FEATURES: dict[str, Callable[[Dialect, Ask], Awaitable[None]]] = {
    "plain": plain,
    "stream": stream,
    "schema": schema,
    "tools": tools,
    "images": images,
    "embeddings": embeddings,
    "usage (cached, reasoning)": usage,
    "errors": errors,
}
LIMITS = "limit headers"
# What an embeddings API has no word for.
CHAT_ONLY = {"plain", "stream", "schema", "tools", "images"}


def has(dialect: Dialect, feature: str) -> bool:
    """Whether there is such a thing in this dialect."""
    if feature == LIMITS:
        return not dialect.api.startswith("gemini")  # it says them in the body of a 429 alone: see errors
    if feature == "embeddings":
        return not dialect.chat
    return dialect.chat or feature not in CHAT_ONLY


def cells() -> list[tuple[Dialect, str]]:
    """All cells that hold."""
    return [(dialect, feature) for dialect in DIALECTS for feature in (*FEATURES, LIMITS) if has(dialect, feature)]


def table() -> str:
    """The table of the README."""
    names: Sequence[str] = (*FEATURES, LIMITS)
    lines = [f"| | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for dialect in DIALECTS:
        marks = ("yes" if has(dialect, name) else "–" for name in names)
        lines.append(f"| {dialect.title} | {' | '.join(marks)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
