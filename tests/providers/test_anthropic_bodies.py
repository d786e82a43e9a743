"""A body for Messages, in neutral words: what a line of Anthropic's batch API asks of another provider."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmbatch.providers.anthropic import Anthropic
from llmbatch.providers.from_anthropic import of_anthropic
from llmbatch.providers.openai_chat import OpenAIChat
from llmbatch.records import Request
from llmbatch.rules.reasons import RowError

USER = {"role": "user", "content": "Hi"}
CACHED = {"cache_control": {"type": "ephemeral"}}
CITY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["city"],
    "properties": {"city": {"type": "string"}},
}
OPEN = {"type": "object", "properties": {"city": {"type": "string"}}}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def body(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"model": "claude-x", "max_tokens": 5, "messages": list(turns or (USER,)), **more}


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        (body(), [USER]),
        (body(system="s"), [{"role": "system", "content": "s"}, USER]),
        (body(system=[{**text("s"), **CACHED}]), [{"role": "system", "content": "s"}, USER]),
        (body(system=[text("s"), text("t")]), [{"role": "system", "content": [text("s"), text("t")]}, USER]),
        (body({"role": "user", "content": [text("a")]}), [{"role": "user", "content": "a"}]),
        (
            body(
                {
                    "role": "user",
                    "content": [
                        text("a"),
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}},
                        {"type": "image", "source": {"type": "url", "url": "https://x/y"}, **CACHED},
                    ],
                }
            ),
            [
                {
                    "role": "user",
                    "content": [
                        text("a"),
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}},
                        {"type": "image_url", "image_url": {"url": "https://x/y"}},
                    ],
                }
            ],
        ),
        (
            body(
                USER,
                {
                    "role": "assistant",
                    "content": [text("See"), {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": [1]}}],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": [text("sunny")], "is_error": False},
                        {"type": "tool_result", "tool_use_id": "t2"},
                        text("And?"),
                    ],
                },
            ),
            [
                USER,
                {
                    "role": "assistant",
                    "content": "See",
                    "tool_calls": [
                        {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":[1]}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
                {"role": "tool", "tool_call_id": "t2", "content": ""},
                {"role": "user", "content": "And?"},
            ],
        ),
        (
            body(USER, {"role": "system", "content": "s"}, {"role": "assistant", "content": "b"}, USER),
            [USER, {"role": "system", "content": "s"}, {"role": "assistant", "content": "b"}, USER],
        ),
    ],
)
def test_messages(given: dict[str, Any], messages: list[Any]) -> None:
    before = json.dumps(given)
    assert of_anthropic(given).messages == messages
    assert json.dumps(given) == before


@pytest.mark.parametrize(
    ("more", "params"),
    [
        ({}, {}),
        ({"temperature": 0, "top_p": 1, "top_k": 3}, {"temperature": 0, "top_p": 1, "top_k": 3}),
        ({"stop_sequences": ["x"]}, {"stop": ["x"]}),
        ({"metadata": {"user_id": "u"}}, {"user": "u"}),
        ({"service_tier": "auto"}, {"service_tier": "auto"}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"cache_control": {"type": "ephemeral"}, "stream": True}, {}),
        ({"seed": 5}, {"seed": 5}),  # of the command line
        (
            {"output_config": {"format": {"type": "json_schema", "schema": CITY}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": CITY, "strict": True},
                }
            },
        ),
        (  # OpenAI would refuse it as strict
            {"output_config": {"format": {"type": "json_schema", "schema": OPEN}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": OPEN, "strict": False},
                }
            },
        ),
        (
            {"tools": [{"type": "custom", "name": "f", "description": "d", "input_schema": OPEN, **CACHED}]},
            {"tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": OPEN}}]},
        ),
        ({"tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
        (
            {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "tool", "name": "f"}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
    ],
)
def test_parameters(more: dict[str, Any], params: dict[str, Any]) -> None:
    assert of_anthropic(body(**more)).params == {"max_tokens": 5, **params}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (body(thinking={"type": "adaptive"}), "'thinking'"),
        (body(inference_geo="us"), "'inference_geo'"),
        (body(speed="fast"), "'speed'"),
        (body(container="c"), "'container'"),
        (body(metadata={"x": 1}), "metadata.x"),
        (body(output_config={"task_budget": 1}), "output_config.task_budget"),
        (body(output_config={"format": {"type": "x"}}), "output_config.format"),
        (body(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "tools\\[0\\]"),
        (body(tools=[{"name": "f", "input_schema": {}, "defer_loading": True}]), "defer_loading"),
        (body(tool_choice={"type": "x"}), "tool_choice"),
        (body({"role": "user", "content": [{"type": "document", "source": {}}]}), "document"),
        (body({"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}), "image"),
        (body({"role": "user", "content": [{**text("a"), "citations": [1]}]}), "citations"),
        (
            body({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "is_error": True}]}),
            "is_error",
        ),
        (body({"role": "assistant", "content": [{"type": "thinking", "thinking": ""}]}), "thinking"),
        (body({"role": "assistant", "content": [{"type": "redacted_thinking", "data": ""}]}), "redacted_thinking"),
        (
            body({"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f"}, text("a")]}),
            "after a tool",
        ),
        (body({"role": "tool", "content": "a"}), "'tool'"),
        (body({**USER, "name": "x"}), "'name'"),
    ],
)
def test_what_no_other_dialect_can_say_is_refused_by_name(given: dict[str, Any], named: str) -> None:
    with pytest.raises(RowError, match=named) as raised:
        of_anthropic(given)
    assert "Anthropic's Messages only" in str(raised.value)


@pytest.mark.parametrize(
    "given",
    [
        body("Hi"),
        body({"role": "user"}),
        body({"role": "user", "content": 5}),
        body({"role": "user", "content": ["Hi"]}),
        body({"role": "user", "content": [{"type": "text", "text": 5}]}),
        body({"role": "assistant", "content": [{"type": "tool_use", "input": "x"}]}),
        body({"role": ["user"], "content": "a"}),
        body(system=5),
        body(tools={}) | {"tools": {"a": 1}},
        body(tools=["x"]),
        body(tool_choice="auto"),
        body(metadata=[1]),
        body(output_config="low"),
        body(output_config={"format": "x"}),
        body(output_config={"format": {"type": "json_schema", "schema": {"properties": "x"}}}),
        body(tool_choice={"type": ["auto"]}),
        body(messages=[{"role": "assistant", "content": [{"type": "tool_use", "input": {"a": "\ud800"}}]}]),
        {"model": "m", "messages": "Hi"},
    ],
)
def test_garbage_is_a_bad_row(given: dict[str, Any]) -> None:
    with pytest.raises(RowError):
        of_anthropic(given)


def test_a_line_is_sent_to_chat_completions() -> None:
    given = body({"role": "user", "content": [{**text("Hi"), **CACHED}]}, system="s", stop_sequences=["x"])
    sent = OpenAIChat().encode(Request("gpt", body=given, api="anthropic"))
    assert sent == {
        "model": "gpt",
        "messages": [{"role": "system", "content": "s"}, USER],
        "max_tokens": 5,
        "stop": ["x"],
    }


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"system": "s", "stop_sequences": ["x"], "metadata": {"user_id": "u"}},
        {"tools": [{"name": "f", "input_schema": OPEN}], "tool_choice": {"type": "tool", "name": "f"}},
        {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": CITY}}},
    ],
)
def test_there_and_back_it_is_the_same_body(more: dict[str, Any]) -> None:
    given = body(USER, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, **more)
    said = of_anthropic(given)
    assert Anthropic().encode(said) == given
