"""What each API refuses, and names in doing so."""

from __future__ import annotations

from typing import Any

import pytest
from sim_wire import endpoints, sim, streamed_text, text_of

PARAMETERS = {"type": "object", "properties": {"id": {"type": "integer"}}}
CHAT_TOOL = {"type": "function", "function": {"name": "track", "parameters": PARAMETERS}}
FLAT_TOOL = {"type": "function", "name": "track", "parameters": PARAMETERS}
CLAUDE_TOOL = {"name": "track", "input_schema": PARAMETERS}
GEMINI_TOOL = {"functionDeclarations": [{"name": "track", "parametersJsonSchema": PARAMETERS}]}
OPEN = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
CLOSED = {**OPEN, "additionalProperties": False}


def schema_format(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema, **more}}


def user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


def contents(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"contents": [{"role": role, "parts": list(parts)}]}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("openai-chat", {"response_format": schema_format(OPEN)}, "additionalProperties"),
    ("openai-chat", {"response_format": schema_format(CLOSED, name="a b")}, "json_schema.name"),
    ("openai-chat", {"response_format": {"type": "json"}}, "json_object"),
    ("openai-chat", {"response_format": {"type": "json_schema", "name": "s", "schema": {}}}, "json_schema"),
    ("openai-chat", {"tools": [FLAT_TOOL]}, "tools[0].name"),
    ("openai-chat", {"tool_choice": "required"}, "tool_choice"),
    ("openai-chat", {"tools": [CHAT_TOOL], "tool_choice": "any"}, "'any'"),
    ("openai-chat", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("openai-chat", {"model": "gpt-6-sol", "max_tokens": 5}, "max_completion_tokens"),
    ("openai-chat", {"model": "gpt-5-mini", "temperature": 0.5}, "temperature"),
    ("openai-chat", {"reasoning_effort": "huge"}, "'xhigh'"),
    ("openai-chat", {"messages": user({"type": "image", "source": {}})}, "content[0].type"),
    ("openai-chat", {"messages": user({"type": "image_url", "image_url": {"url": "/etc/x"}})}, "image_url.url"),
    ("openai-chat", {"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
    ("openai-responses", {"messages": []}, "messages"),
    ("openai-responses", {"seed": 1}, "seed"),
    ("openai-responses", {"stop": "x"}, "stop"),
    ("openai-responses", {"max_tokens": 1}, "max_tokens"),
    ("openai-responses", {"input": user({"type": "text", "text": "x"})}, "'input_text'"),
    ("openai-responses", {"input": [{"role": "tool", "content": "x"}]}, "'tool'"),
    ("openai-responses", {"input": []}, "empty array"),
    ("openai-responses", {"text": {"format": schema_format(CLOSED)}}, "text.format"),
    ("openai-responses", {"tools": [CHAT_TOOL]}, "tools[0]"),
    ("anthropic", {"max_tokens": None}, "max_tokens"),
    ("anthropic", {"temperature": 1.5}, "temperature"),
    ("anthropic", {"seed": 1}, "seed: Extra inputs"),
    ("anthropic", {"model": "claude-opus-4-7", "temperature": 1.0}, "temperature"),
    ("anthropic", {"model": "claude-haiku-5-5-20260901", "top_k": 3}, "top_k"),
    (
        "anthropic",
        {"model": "claude-sonnet-5-5", "tools": [CLAUDE_TOOL], "tool_choice": {"type": "any"}},
        "tool_choice",
    ),
    ("anthropic", {"model": "claude-opus-5-5", "thinking": {"type": "disabled"}}, "thinking"),
    ("anthropic", {"model": "claude-opus-5", "thinking": {"type": "enabled", "budget_tokens": 1024}}, "max_tokens"),
    (
        "anthropic",
        {"model": "claude-opus-5", "thinking": {"type": "disabled"}, "output_config": {"effort": "max"}},
        "effort",
    ),
    ("anthropic", {"messages": []}, "at least one message"),
    ("anthropic", {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ("anthropic", {"messages": user({"type": "image_url", "image_url": {}})}, "image_url"),
    ("anthropic", {"messages": user({"type": "text", "text": ""})}, "non-empty"),
    ("anthropic", {"messages": user({"type": "tool_result", "tool_use_id": "t"})}, "tool_use_id"),
    ("anthropic", {"tools": [{"name": "a"}]}, "tools.0"),
    ("anthropic", {"output_config": {"format": {"type": "json_schema", "schema": OPEN}}}, "additionalProperties"),
    ("gemini", {"contents": []}, "contents"),
    ("gemini", contents({"text": "x"}, role="assistant"), "valid role"),
    ("gemini", contents(), "parts"),
    ("gemini", contents({"text": "x", "functionCall": {"name": "f"}}), "oneof"),
    ("gemini", contents({"type": "text", "text": "x"}), '"type"'),
    ("gemini", {"generationConfig": {"temperature": 3}}, "temperature"),
    ("gemini", {"generationConfig": {"maxTokens": 3}}, '"maxTokens"'),
    ("gemini", {"generationConfig": {"responseJsonSchema": CLOSED}}, "responseMimeType"),
    (
        "gemini",
        {"generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": {"const": 1}}},
        "'const'",
    ),
    (
        "gemini",
        {"generationConfig": {"thinkingConfig": {"thinkingLevel": "LOW", "thinkingBudget": 5}}},
        "thinkingBudget",
    ),
    ("gemini", {"model": "models/other"}, "models/other"),
    ("gemini", {"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, "function_declarations"),
    (
        "anthropic",
        {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}] * 5},
        "A maximum of 4 blocks with cache_control may be provided. Found 5.",
    ),
    (
        "anthropic",
        {"system": [{"type": "text", "text": "", "cache_control": {"type": "ephemeral"}}]},
        "cache_control cannot be set for empty text blocks",
    ),
]


@pytest.mark.parametrize(("name", "fields", "says"), REFUSED)
async def test_refused_with_the_place(name: str, fields: dict[str, Any], says: str):
    async with sim() as client:
        status, _, body = await client.ask(endpoints()[name], **fields)
    assert status == 400
    assert says in body["error"]["message"] + str(body["error"].get("param"))


ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("openai-chat", {"response_format": schema_format(CLOSED)}),
    ("openai-chat", {"model": "gpt-5-mini", "temperature": 1, "max_completion_tokens": 5}),
    ("openai-chat", {"model": "gpt-6-luna", "temperature": 0.5, "reasoning_effort": "none"}),
    ("openai-chat", {"model": "gpt-4.1-mini", "temperature": 0, "max_tokens": 5, "stop": ["x"]}),
    ("openai-responses", {"input": "text", "instructions": "Short.", "store": False}),
    ("anthropic", {"model": "claude-sonnet-4-6", "temperature": 0.2}),
    ("anthropic", {"model": "claude-3-5-haiku-20241022", "top_k": 4}),
    ("anthropic", {"model": "claude-haiku-5-5", "thinking": {"type": "disabled"}}),
    ("anthropic", {"model": "claude-sonnet-4-20250514", "top_p": 0.5}),
    ("anthropic", {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]}),
    (
        "gemini",
        {"generation_config": {"max_output_tokens": 5, "top_p": 0.5}, "system_instruction": {"parts": [{"text": "s"}]}},
    ),
    ("gemini", {"safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]}),
    ("gemini", {"model": "models/m"}),
]


@pytest.mark.parametrize(("name", "fields"), ACCEPTED)
async def test_accepted(name: str, fields: dict[str, Any]):
    async with sim() as client:
        status, _, body = await client.ask(endpoints()[name], **fields)
    assert (status, body.get("error")) == (200, None)


@pytest.mark.parametrize(
    ("headers", "fields", "says"),
    [
        ({}, {}, "anthropic-version: header is required"),
        ({"anthropic-version": "2030-01-01"}, {}, "not a valid version"),
        ({"anthropic-version": "2026-10-21"}, {"temperature": 1.0}, "temperature"),
        (
            {"anthropic-version": "2026-10-21"},
            {"messages": user({"type": "text", "text": "x", "citations": [{}]})},
            "citations",
        ),
        ({"anthropic-version": "2026-10-21"}, {}, None),
    ],
)
async def test_anthropic_versions(headers: dict[str, str], fields: dict[str, Any], says: str | None):
    endpoint = endpoints()["anthropic"]
    async with sim() as client:
        status, _, data = await client.post(endpoint.path, {**endpoint.body, **fields}, headers)
    assert status == (200 if says is None else 400)
    assert says is None or says in data.decode()


# How each dialect offers a tool, and demands that it is called.
FORCED: dict[str, dict[str, Any]] = {
    "openai-chat": {"tools": [CHAT_TOOL], "tool_choice": "required"},
    "openai-responses": {"tools": [FLAT_TOOL], "tool_choice": {"type": "function", "name": "track"}},
    "azure-chat": {"tools": [CHAT_TOOL], "tool_choice": {"type": "function", "function": {"name": "track"}}},
    "anthropic": {"tools": [CLAUDE_TOOL], "tool_choice": {"type": "tool", "name": "track"}},
    "gemini": {"tools": [GEMINI_TOOL], "toolConfig": {"functionCallingConfig": {"mode": "ANY"}}},
}


def call_in(name: str, body: Any) -> tuple[str, Any]:
    match name:
        case "openai-chat" | "azure-chat":
            choice = body["choices"][0]
            assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
            function = choice["message"]["tool_calls"][0]["function"]
            return function["name"], function["arguments"]
        case "openai-responses":
            [item] = body["output"]
            assert item["type"] == "function_call" and item["call_id"]
            return item["name"], item["arguments"]
        case "anthropic":
            [block] = body["content"]
            assert (block["type"], body["stop_reason"]) == ("tool_use", "tool_use")
            return block["name"], block["input"]
    assert body["candidates"][0]["finishReason"] == "STOP"
    [part] = body["candidates"][0]["content"]["parts"]
    return part["functionCall"]["name"], part["functionCall"]["args"]


@pytest.mark.parametrize("name", FORCED)
async def test_a_tool_is_called_when_it_must_or_the_prompt_says_so(name: str):
    arguments = {"id": 1} if name in ("anthropic", "gemini") else '{"id":1}'
    async with sim() as client:
        _, _, body = await client.ask(endpoints()[name], **FORCED[name])
        assert call_in(name, body) == ("track", arguments)
        _, _, body = await client.ask(endpoints("Please use the tool track now.")[name], tools=FORCED[name]["tools"])
        assert call_in(name, body) == ("track", arguments)
        _, _, body = await client.ask(endpoints()[name], tools=FORCED[name]["tools"])
        assert text_of(name, body)


@pytest.mark.parametrize("name", FORCED)
async def test_a_tool_call_is_streamed(name: str):
    async with sim() as client:
        data = (await client.raw_stream(endpoints()[name], **FORCED[name])).decode()
    assert '"name":"track"' in data
    assert streamed_text(name, data.encode()) == ""
    assert ('{"id":1}' if name == "gemini" else '{\\"id') in data  # Gemini sends a call whole
