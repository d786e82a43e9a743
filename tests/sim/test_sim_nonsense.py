"""A request that is no request gets an error answer, in every dialect, whatever stands in it."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from llmbatch.sim.http11 import HttpRequest
from llmbatch.sim.ledger import Ledger
from llmbatch.sim.options import SimOptions
from llmbatch.sim.service import Service

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["a"],
    "properties": {"a": {"anyOf": [{"type": "integer"}]}},
}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": False}
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "https://a"}}],
            },
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "r"},
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}},
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
    },
    "/v1/responses": {
        "model": "m",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call_output", "call_id": "c", "output": "r"},
        ],
        "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
        "tools": [{"type": "function", **FUNCTION}],
        "tool_choice": {"type": "function", "name": "f"},
        "reasoning": {"effort": "low"},
    },
    "/v1/embeddings": {"model": "m", "input": ["a", [1, 2]], "dimensions": 3},
    "/v1/messages": {
        "model": "claude-sonnet-5",
        "max_tokens": 2000,
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://a"}}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"text": "r"}]}]},
        ],
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        "tools": [{"name": "f", "input_schema": SCHEMA, "strict": True}],
        "tool_choice": {"type": "auto"},
        "stop_sequences": ["x"],
    },
    "/v1beta/models/m:generateContent": {
        "contents": [
            {"role": "user", "parts": [{"text": "a"}, {"inlineData": {"mimeType": "image/png", "data": "A"}}]}
        ],
        "systemInstruction": {"parts": [{"text": "s"}]},
        "generationConfig": {
            "responseMimeType": "application/json",
            "responseJsonSchema": {"type": "object", "properties": {"a": {"type": "integer"}}},
            "thinkingConfig": {"thinkingLevel": "LOW"},
            "stopSequences": ["x"],
        },
        "tools": [{"functionDeclarations": [{"name": "f", "parameters": {"type": "OBJECT"}}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
    },
    "/v1/models/m:batchEmbedContents": {"requests": [{"model": "models/m", "content": {"parts": [{"text": "a"}]}}]},
}
NONSENSE: list[Any] = [
    None,
    True,
    -1,
    1.5,
    2**63,
    "",
    "x",
    [],
    {},
    [None],
    [[]],
    {"x": 1},
    {"type": {}},
    {"type": []},
    ["x"],
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from places(child, (*path, name))


def with_value(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(body)
    at = changed
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return changed


def reply_to(service: Service, path: str, body: Any) -> tuple[int | None, bytes]:
    headers = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
    if (path.startswith("/v1/m") and "models" in path) or "beta" in path:
        headers = {"content-type": "application/json", "x-goog-api-key": "k"}
    reply = service.reply(HttpRequest("POST", path, "", headers, orjson.dumps(body)), 0.0, 0.0)
    return reply.status, b"".join(data for _, data in reply.parts)


@pytest.mark.parametrize("path", REQUESTS)
def test_the_requests_themselves_are_good(path: str):
    assert reply_to(Service(SimOptions(), Ledger()), path, REQUESTS[path])[0] == 200


@pytest.mark.parametrize("path", REQUESTS)
def test_every_value_may_be_nonsense(path: str):
    service, chance = Service(SimOptions(), Ledger()), random.Random(7)
    for place in places(REQUESTS[path]):
        for value in chance.sample(NONSENSE, 8) if len(place) > 3 else NONSENSE:
            status, data = reply_to(service, path, with_value(REQUESTS[path], place, value))
            assert status in (200, 400), (place, value)
            assert (status == 200) != (b'"error":{' in data), (place, value)
