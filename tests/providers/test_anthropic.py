"""What is particular to Anthropic Messages: requests, and whole answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from llmbatch.providers.anthropic import DEFAULT_MAX_TOKENS, Anthropic
from llmbatch.providers.anthropic_answer import reply_of, usage_of
from llmbatch.providers.anthropic_turns import turns_of
from llmbatch.records import Failure, Reply, Request, Usage
from llmbatch.rules.reasons import RowError

MESSAGES = Anthropic()
FIXTURES = Path(__file__).parent / "fixtures" / "anthropic"
NONE: CIMultiDict[str] = CIMultiDict()
USER = {"role": "user", "content": "Hi"}
PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}
CITY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["city"],
    "properties": {"city": {"type": "string"}},
}
WEATHER = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}, "strict": True}
TOOLS = [{"type": "function", "function": WEATHER}]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rom"}'}}
USE = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rom"}}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def body_of(params: dict[str, Any], extra: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return dict(MESSAGES.encode(Request("m", [USER], params, extra or {}, **more)))


def turns(*messages: dict[str, Any]) -> tuple[Any, list[Any]]:
    body = MESSAGES.encode(Request("m", messages))
    return body.get("system"), body["messages"]


def test_the_version_is_a_header() -> None:
    assert MESSAGES.headers == {"anthropic-version": "2023-06-01"}
    assert Anthropic("2026-10-21").headers == {"anthropic-version": "2026-10-21"}
    assert MESSAGES.path("m") == MESSAGES.path("m", stream=True) == "/messages"


def test_the_documented_request() -> None:
    documented = json.loads((FIXTURES / "ant_request.json").read_bytes())
    request = Request(
        "claude-sonnet-5-5",
        [{"role": "system", "content": documented["system"]}, *documented["messages"]],
        {"max_tokens": 2000, "reasoning_effort": "low"},
        {"thinking": {"type": "between_tools"}},
        schema=CITY,
    )
    assert MESSAGES.encode(request) == documented


# Turns


@pytest.mark.parametrize(
    ("messages", "system", "expected"),
    [
        ([USER], None, [USER]),
        ([{"role": "system", "content": "s"}, USER], "s", [USER]),
        ([{"role": "developer", "content": "s"}, USER], "s", [USER]),
        ([{"role": "system", "content": ""}, USER], None, [USER]),
        (
            [{"role": "system", "content": "s"}, {"role": "developer", "content": [text("d")]}, USER],
            [text("s"), text("d")],
            [USER],
        ),
        ([USER, USER], None, [{"role": "user", "content": [text("Hi"), text("Hi")]}]),
        (
            [{"role": "user", "content": [text("a"), text(""), PNG]}],
            None,
            [
                {
                    "role": "user",
                    "content": [
                        text("a"),
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}},
                    ],
                }
            ],
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "HTTPS://x/y.png", "cache_control": {}}]}],
            None,
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "url", "url": "HTTPS://x/y.png"}, "cache_control": {}}
                    ],
                }
            ],
        ),
        (
            [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}],
            None,
            [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}],
        ),
        (
            [
                USER,
                {
                    "role": "assistant",
                    "content": "Let me see",
                    "tool_calls": [CALL],
                    "refusal": None,
                    "annotations": [],
                },
                {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"},
                {"role": "tool", "tool_call_id": "c2", "content": [text("x"), PNG]},
                {"role": "tool", "tool_call_id": "c3", "content": ""},
                {"role": "user", "content": "And now?"},
            ],
            None,
            [
                USER,
                {"role": "assistant", "content": [text("Let me see"), USE]},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c1", "content": "sunny"},
                        {
                            "type": "tool_result",
                            "tool_use_id": "c2",
                            "content": [
                                text("x"),
                                {
                                    "type": "image",
                                    "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"},
                                },
                            ],
                        },
                        {"type": "tool_result", "tool_use_id": "c3"},
                        text("And now?"),
                    ],
                },
            ],
        ),
        (
            [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
            None,
            [USER, {"role": "assistant", "content": [USE]}],
        ),
        (
            [USER, {"role": "assistant", "content": None, "refusal": "I can not."}, USER],
            None,
            [USER, {"role": "assistant", "content": [text("I can not.")]}, USER],
        ),
        (  # a system message in the middle stays where it is; two of them are one
            [USER, {"role": "system", "content": "a"}, {"role": "developer", "content": "b"}],
            None,
            [USER, {"role": "system", "content": [text("a"), text("b")]}],
        ),
        (
            [USER, {"role": "system", "content": "a"}, {"role": "assistant", "content": "c"}, USER],
            None,
            [USER, {"role": "system", "content": "a"}, {"role": "assistant", "content": "c"}, USER],
        ),
    ],
)
def test_turns(messages: list[dict[str, Any]], system: Any, expected: list[Any]) -> None:
    before = json.dumps(messages)
    assert turns(*messages) == (system, expected)
    assert json.dumps(messages) == before


@pytest.mark.parametrize("arguments", ["", "{}", None])
def test_no_arguments_are_an_empty_object(arguments: Any) -> None:
    call = {**CALL, "function": {"name": "now", "arguments": arguments}}
    _, sent = turns(USER, {"role": "assistant", "content": None, "tool_calls": [call]})
    assert sent[1]["content"][0]["input"] == {}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "input_audio"),
        ({"role": "user", "content": [{"type": "image", "path": "x.png"}]}, "'image'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "image_url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}, "https"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/tiff;base64,A"}}]},
            "tiff|jpeg",
        ),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,A"}}]}, "base64"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {**PNG["image_url"], "detail": "low"}}]},  # type: ignore[dict-item]
            "detail",
        ),
        ({"role": "user", "content": ""}, "empty"),
        ({"role": "user", "content": [text("")]}, "empty"),
        ({"role": "user", "content": 5}, "a number"),
        ({"role": "user", "content": [5]}, "content\\[0\\]"),
        ({"role": "user", "content": "a", "name": "Ann"}, "'name'"),
        ({"role": "assistant", "content": "a", "reasoning_content": "hm"}, "reasoning_content"),
        ({"role": "assistant", "content": "a", "tool_calls": "x"}, "tool_calls"),
        ({"role": "assistant", "content": "a", "tool_calls": [{"type": "custom", "id": "c"}]}, "tool_calls\\[0\\]"),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": None}]}, "'id'"),
        ({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}, "JSON object"),
        ({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[]"}}]}, "JSON object"),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {"a": 1}}}]},
            "JSON object",
        ),
        ({"role": "tool", "content": "a"}, "tool_call_id"),
        ({"role": "function", "name": "f", "content": "a"}, "'function'"),
        ({"role": 5, "content": "a"}, "no role 5"),
    ],
)
def test_what_a_turn_can_not_say_names_the_message(message: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason) as raised:
        turns(USER, message)
    assert "messages[1]" in str(raised.value)


@pytest.mark.parametrize(
    "messages",
    [
        [USER, {"role": "system", "content": "a"}, USER],
        [USER, {"role": "assistant", "content": "b"}, {"role": "system", "content": "a"}],
    ],
)
def test_a_system_message_where_none_may_stand_is_not_moved(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(RowError, match="put it first"):
        turns(*messages)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "system", "content": "s"}], "a user's message"),
        ([{"role": "system", "content": [PNG]}, USER], "only text"),
        ([USER, {"role": "system", "content": [PNG]}], "only text"),
    ],
)
def test_conversations_that_can_not_be_sent(messages: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        turns(*messages)


# Parameters


@pytest.mark.parametrize(
    ("params", "fields"),
    [
        ({}, {"max_tokens": DEFAULT_MAX_TOKENS}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 7, "max_tokens": 7}, {"max_tokens": 7}),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 5}, {"temperature": 0.5, "top_p": 0.9, "top_k": 5}),
        ({"stop": "x"}, {"stop_sequences": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop_sequences": ["x", "y"]}),
        ({"reasoning_effort": "max"}, {"output_config": {"effort": "max"}}),
        ({"user": "u1"}, {"metadata": {"user_id": "u1"}}),
        ({"metadata": {"user_id": "u1"}, "user": "u1"}, {"metadata": {"user_id": "u1"}}),
        ({"service_tier": "standard_only"}, {"service_tier": "standard_only"}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": CITY}}},
            {"output_config": {"format": {"type": "json_schema", "schema": CITY}}},
        ),
        (
            {"tools": TOOLS},
            {"tools": [{"name": "weather", "description": "d", "strict": True, "input_schema": WEATHER["parameters"]}]},
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "now", "strict": None}, "cache_control": {"a": 1}}]},
            {
                "tools": [
                    {"name": "now", "input_schema": {"type": "object", "properties": {}}, "cache_control": {"a": 1}}
                ]
            },
        ),
        ({"tools": [{"name": "t", "input_schema": {}}]}, {"tools": [{"name": "t", "input_schema": {}}]}),
        ({"tools": [{"type": "web_search_20250305"}]}, {"tools": [{"type": "web_search_20250305"}]}),
        ({"tool_choice": "auto"}, {"tool_choice": {"type": "auto"}}),
        ({"tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        ({"tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
            {"tool_choice": {"type": "tool", "name": "weather"}},
        ),
        ({"tool_choice": {"type": "any"}}, {"tool_choice": {"type": "any"}}),
        ({"parallel_tool_calls": False}, {}),  # without tools there is nothing to call
        ({"parallel_tool_calls": True}, {}),
        # the API's own words go as they are
        ({"thinking": {"type": "adaptive"}, "x": [1]}, {"thinking": {"type": "adaptive"}, "x": [1]}),
        ({"system": "s", "stop_sequences": ["x"]}, {"system": "s", "stop_sequences": ["x"]}),
        (
            {"output_config": {"task_budget": 1}, "reasoning_effort": "low"},
            {"output_config": {"effort": "low", "task_budget": 1}},
        ),
    ],
)
def test_a_parameter_in_anthropics_words(params: dict[str, Any], fields: dict[str, Any]) -> None:
    expected = {"model": "m", "messages": [USER], "max_tokens": DEFAULT_MAX_TOKENS, **fields}
    assert body_of(params) == expected
    assert body_of({}, params) == expected, "the same from -p"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, {"type": "auto", "disable_parallel_tool_use": True}),
        ("required", {"type": "any", "disable_parallel_tool_use": True}),
        ("none", {"type": "none"}),
    ],
)
def test_one_tool_call_at_a_time(choice: Any, expected: Any) -> None:
    params = {"tools": TOOLS, "parallel_tool_calls": False, **({"tool_choice": choice} if choice else {})}
    assert body_of(params)["tool_choice"] == expected


def test_the_row_wins_over_the_command_line() -> None:
    body = body_of({"temperature": 0, "reasoning_effort": "low"}, {"temperature": 1, "reasoning_effort": "high"})
    assert body["temperature"] == 0 and body["output_config"] == {"effort": "low"}


@pytest.mark.parametrize(
    "name",
    [
        "seed",
        "logprobs",
        "top_logprobs",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "verbosity",
        "store",
    ],
)
def test_what_anthropic_has_no_word_for_is_not_dropped(name: str) -> None:
    for params, extra in (({name: 1}, {}), ({}, {name: 1})):
        with pytest.raises(RowError, match=f"no word for '{name}'"):
            body_of(params, extra)


def test_one_answer_is_what_it_gives_anyway() -> None:
    assert body_of({"n": 1}) == body_of({}, {"n": 1}) == body_of({})
    with pytest.raises(RowError, match="no word for 'n'"):
        body_of({"n": 2})


@pytest.mark.parametrize("more", [[], [{"role": "assistant", "content": "b"}]])
def test_the_name_of_a_system_message_is_not_dropped(more: list[dict[str, Any]]) -> None:
    for role in ("system", "developer"):
        with pytest.raises(RowError, match=r"messages\[0\]: .*'name'"):
            turns_of([{"role": role, "name": "example_user", "content": "a"}, {"role": "user", "content": "a"}, *more])


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"reasoning_effort": "none"}, "thinking"),
        ({"reasoning_effort": "minimal"}, "low is the least"),
        ({"response_format": {"type": "json_object"}}, "--schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}}, "an object"),
        ({"metadata": {"topic": "x"}}, "topic"),
        ({"metadata": {"user_id": "a"}, "user": "b"}, "contradicts"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "allowed_tools"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": {"type": "function"}}, "'tools' must be a list"),
        ({"tools": [5]}, "a number"),
        ({"tools": [{"type": "function", "name": "flat"}]}, '"function": {'),
        ({"stop": "x", "stop_sequences": ["y"]}, "stop_sequences"),
        ({"reasoning_effort": "low", "output_config": {"effort": "high"}}, "output_config.effort"),
    ],
)
def test_parameters_that_can_not_be_said(params: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        body_of(params)


def test_two_system_prompts_contradict_each_other() -> None:
    with pytest.raises(RowError, match="'system' is said twice"):
        MESSAGES.encode(Request("m", [{"role": "system", "content": "a"}, USER], {"system": "b"}))


def test_texts_to_embed_are_refused() -> None:
    with pytest.raises(RowError, match="embeddings"):
        MESSAGES.encode(Request("m", input="a"))


def test_a_schema_takes_the_place_of_a_response_format_and_stands_beside_the_effort() -> None:
    other = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": {}}}}
    body = body_of({"response_format": other, "reasoning_effort": "low"}, schema=CITY)
    assert body["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": CITY}}


# Whole bodies


def test_a_body_of_its_own_gets_the_schema_and_stays_as_it_is() -> None:
    body = {
        "model": "m",
        "max_tokens": 5,
        "messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": "s"}]}, USER],
        "output_config": {"effort": "low"},
    }
    request = Request("m", body=body, api="anthropic")
    assert MESSAGES.encode(request) == body
    with_schema = MESSAGES.encode(Request("m", body=body, api="anthropic", schema=CITY))
    assert with_schema == {
        **body,
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": CITY}},
    }
    assert body["output_config"] == {"effort": "low"}


def test_a_body_for_chat_completions_is_translated() -> None:
    body = {"model": "gpt", "messages": [{"role": "system", "content": "s"}, USER], "max_completion_tokens": 5}
    assert MESSAGES.encode(Request("m", body=body, api="openai-chat")) == {
        "model": "m",
        "system": "s",
        "messages": [USER],
        "max_tokens": 5,
    }


@pytest.mark.parametrize("message", [{}, {"role": ["user"], "content": "a"}, {"role": "user", "content": [{}]}])
def test_a_foreign_body_that_is_garbage_is_a_bad_row(message: dict[str, Any]) -> None:
    with pytest.raises(RowError):
        MESSAGES.encode(Request("m", body={"model": "m", "messages": [message]}, api="openai-chat"))


# Whole answers


def message(**members: Any) -> dict[str, Any]:
    return {"content": [text("a")], "stop_reason": "end_turn", "model": "m", **members}


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "context_length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "paused"),
        ("of_tomorrow", "of_tomorrow"),
    ],
)
def test_why_an_answer_ended(stop_reason: str, finish_reason: str) -> None:
    found = reply_of(message(stop_reason=stop_reason))
    assert isinstance(found, Reply) and found.finish_reason == finish_reason
    assert found.native_finish_reason == (stop_reason if stop_reason != finish_reason else None)


@pytest.mark.parametrize(
    "content",
    [None, "a", {}, [5], [{"type": "text"}], [{"type": "text", "text": None}], [text("a"), None]],
)
def test_content_of_another_shape_is_no_answer(content: Any) -> None:
    found = MESSAGES.decode(200, NONE, json.dumps(message(content=content)).encode())
    assert isinstance(found, Failure) and (found.kind, found.type) == ("unusable", "bad_answer")


def test_an_answer_may_be_empty_but_must_say_why_it_ended() -> None:
    ended = reply_of(message(content=[]))
    assert isinstance(ended, Reply) and ended.output == ""
    silent = reply_of(message(content=[], stop_reason=None))
    assert isinstance(silent, Failure) and (silent.kind, silent.type, silent.retryable) == (
        "unusable",
        "no_answer",
        True,
    )


@pytest.mark.parametrize(
    ("details", "words"),
    [
        (None, "the model refused to answer: change"),
        ({"category": None, "explanation": None}, "the model refused to answer: change"),
        ({"category": "bio"}, "(bio)"),
        ({"explanation": "x" * 9999}, "It says: xxx"),
        ("garbage", "the model refused"),
    ],
)
def test_a_refusal_without_text_is_paid_for_and_final(details: Any, words: str) -> None:
    raw = json.dumps(
        message(content=[], stop_reason="refusal", stop_details=details, usage={"input_tokens": 3})
    ).encode()
    found = MESSAGES.decode(200, CIMultiDict({"request-id": "req_1"}), raw)
    assert isinstance(found, Failure)
    assert (found.kind, found.type, found.retryable, found.fatal) == ("permanent", "content_filter", False, False)
    assert words in found.message and len(found.message) <= 4096
    assert found.usage == Usage(input_tokens=3) and found.request_id == "req_1" and found.http_status == 200


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, Usage()),
        ("garbage", Usage()),
        ({}, Usage()),
        ({"input_tokens": 1, "output_tokens": 2}, Usage(1, 2)),
        (
            {"input_tokens": 1, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 100, "output_tokens": 2},
            Usage(111, 2, 10, None, 100),
        ),
        ({"cache_read_input_tokens": 10}, Usage(None, None, 10)),
        ({"input_tokens": -1, "output_tokens": True}, Usage()),
        ({"output_tokens": 5, "output_tokens_details": {"thinking_tokens": 3}}, Usage(None, 5, None, 3)),
        ({"output_tokens": 5, "output_tokens_details": [3]}, Usage(None, 5)),
    ],
)
def test_usage(usage: Any, expected: Usage) -> None:
    assert usage_of(usage) == expected


def test_limits_are_read_from_the_headers() -> None:
    head = (FIXTURES / "ant_response_headers.http").read_text().splitlines()[1:]
    headers = CIMultiDict({name: value for name, _, value in (line.partition(": ") for line in head if line)})
    limits = MESSAGES.limits(headers, 1_795_255_200.0)
    assert limits.requests.limit == 4000 and limits.input_tokens.remaining == 1999000
