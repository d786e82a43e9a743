"""What is particular to OpenAI Responses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict

from llmbatch.providers.from_responses import of_responses
from llmbatch.providers.openai_chat import OpenAIChat
from llmbatch.providers.openai_responses import OpenAIResponses
from llmbatch.providers.responses_stream import ResponsesStream
from llmbatch.records import Failure, Reply, Request
from llmbatch.rules.reasons import RowError

RESPONSES = OpenAIResponses()
SYSTEM, USER = {"role": "system", "content": "s"}, {"role": "user", "content": "p"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}


def body(messages: list[Any], schema: Any = None, extra: Any = None, **params: Any) -> Any:
    return RESPONSES.encode(Request("m", messages, params, extra or {}, schema=schema))


def decoded(**fields: Any) -> Reply | Failure:
    document = {"object": "response", "status": "completed", "output": [], **fields}
    return RESPONSES.decode(200, CIMultiDict({"x-request-id": "r1"}), json.dumps(document).encode())


def said(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": list(parts), **more}


@pytest.mark.parametrize(
    ("messages", "instructions", "items"),
    [
        ([USER], None, [USER]),
        ([SYSTEM, USER], "s", [USER]),
        ([SYSTEM, {"role": "developer", "content": [{"type": "text", "text": "d"}]}, USER], "s\n\nd", [USER]),
        ([SYSTEM], None, [SYSTEM]),  # instructions alone are no question
        ([USER, SYSTEM], None, [USER, SYSTEM]),
        ([{**SYSTEM, "content": [{"type": "text", "text": "s", "prompt_cache_breakpoint": {"mode": "explicit"}}]},
          USER], None,
         [{"role": "system",
           "content": [{"type": "input_text", "text": "s", "prompt_cache_breakpoint": {"mode": "explicit"}}]}, USER]),
        ([{"role": "user", "content": [{"type": "text", "text": "t"}, IMAGE]}], None,
         [{"role": "user", "content": [
             {"type": "input_text", "text": "t"},
             {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}]}]),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "https://h/i.png"},
                                       {"type": "file", "file": {"file_id": "f1"}}]}], None,
         [{"role": "user", "content": [{"type": "input_image", "image_url": "https://h/i.png"},
                                       {"type": "input_file", "file_id": "f1"}]}]),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}]}, USER], None,
         [{"role": "assistant", "content": [{"type": "output_text", "text": "a"}]}, USER]),
        ([{"role": "assistant", "content": None, "refusal": "no"}, USER], None,
         [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER]),
        ([{"role": "assistant", "content": "a", "refusal": "no", "annotations": [1]}, USER], None,
         [{"role": "assistant",
           "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "no"}]}, USER]),
        ([USER, {"role": "assistant", "content": "hm", "tool_calls": [CALL]},
          {"role": "tool", "tool_call_id": "c1", "content": "7"}], None,
         [USER, {"role": "assistant", "content": "hm"},
          {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x":1}'},
          {"type": "function_call_output", "call_id": "c1", "output": "7"}]),
    ],
)  # fmt: skip
def test_messages_become_instructions_and_items(
    messages: list[Any], instructions: str | None, items: list[Any]
) -> None:
    found = body(messages)
    assert (found.get("instructions"), found["input"]) == (instructions, items)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, {"store": False}),
        ({"store": True}, {"store": True}),
        ({"max_tokens": 5}, {"max_output_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_output_tokens": 5}),
        ({"temperature": 0.5, "top_p": 0.1, "top_logprobs": 2}, {"temperature": 0.5, "top_p": 0.1, "top_logprobs": 2}),
        ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
        ({"reasoning_effort": "low", "reasoning": {"summary": "auto"}},
         {"reasoning": {"effort": "low", "summary": "auto"}}),
        ({"verbosity": "high", "response_format": {"type": "json_object"}},
         {"text": {"verbosity": "high", "format": {"type": "json_object"}}}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}}},
         {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}}}),
        ({"tools": [TOOL, {"type": "web_search"}], "tool_choice": "required", "parallel_tool_calls": False},
         {"tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True},
                    {"type": "web_search"}], "tool_choice": "required", "parallel_tool_calls": False}),
        ({"tools": [{"type": "function", "function": {"name": "f"}, "strict": True}]},
         {"tools": [{"type": "function", "name": "f", "strict": True}]}),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}},
         {"tool_choice": {"type": "function", "name": "f"}}),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}}},
         {"tool_choice": {"type": "allowed_tools", "mode": "auto",
                          "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"},
                                     "strict": True}]}}),
        ({"logprobs": True}, {"include": ["message.output_text.logprobs"]}),
        ({"n": 1, "service_tier": "flex", "user": "u", "metadata": {"a": "b"}},
         {"service_tier": "flex", "user": "u", "metadata": {"a": "b"}}),
        ({"truncation": "auto", "prompt_cache_key": "k"}, {"truncation": "auto", "prompt_cache_key": "k"}),
    ],
)  # fmt: skip
def test_parameters(params: dict[str, Any], expected: dict[str, Any]) -> None:
    for found in (body([USER], **params), body([USER], extra=params)):
        assert found == {"model": "m", "input": [USER], "store": False} | expected


def test_the_row_wins_over_the_command_line_and_a_schema_over_both() -> None:
    found = body([USER], SCHEMA, {"text": {"verbosity": "low"}, "temperature": 1}, temperature=0)
    assert found["temperature"] == 0 and found["text"]["verbosity"] == "low"
    form = found["text"]["format"]
    assert form["type"] == "json_schema" and form["name"] and form["schema"]["properties"] == SCHEMA["properties"]


@pytest.mark.parametrize(
    ("messages", "params", "word"),
    [
        ([USER], {"seed": 1}, "'seed'"),
        ([USER], {"stop": "x"}, "'stop'"),
        ([USER], {"top_k": 1}, "'top_k'"),
        ([USER], {"logit_bias": {}}, "'logit_bias'"),
        ([USER], {"presence_penalty": 0}, "'presence_penalty'"),
        ([{**USER, "name": "Ann"}], {}, "'name'"),
        ([{"role": "function", "name": "f", "content": "7"}], {}, "name"),
        ([{"role": "function", "content": "7"}], {}, "'function'"),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
            {},
            r"content\[0\].*'input_audio'",
        ),
        ([{"role": "assistant", "content": "", "tool_calls": [{"type": "custom"}]}], {}, "tool call"),
        ([{"role": "assistant", "content": "", "tool_calls": 5}], {}, "'tool_calls'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, r"content\[0\].*image_url"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], {}, r"content\[0\].*image_url"),
    ],
)
def test_what_has_no_word_is_refused_by_its_name(messages: list[Any], params: dict[str, Any], word: str) -> None:
    with pytest.raises(RowError, match=word):
        body(messages, **params)


def test_texts_to_embed_are_refused() -> None:
    with pytest.raises(RowError, match="embeddings"):
        RESPONSES.encode(Request("m", input="a"))


def test_a_chat_body_is_translated() -> None:
    chat = {"model": "b", "messages": [SYSTEM, USER], "max_tokens": 5}
    found = RESPONSES.encode(Request("b", body=chat, api="openai-chat"))
    assert found == {"model": "b", "instructions": "s", "input": [USER], "max_output_tokens": 5, "store": False}


# The way back

WHOLE = {
    "model": "m",
    "instructions": "s",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "t"},
                                     {"type": "input_image", "image_url": "https://h/i.png", "detail": "low"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "7"},
        {"role": "user", "content": "p"},
    ],
    "store": False,
    "max_output_tokens": 5,
    "temperature": 0.5,
    "reasoning": {"effort": "low"},
    "text": {"verbosity": "low", "format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}},
    "tools": [{"type": "function", "name": "f", "parameters": {}}],
    "tool_choice": {"type": "function", "name": "f"},
}  # fmt: skip


def test_a_body_read_and_written_again_is_the_same() -> None:
    neutral = of_responses(WHOLE)
    assert [message["role"] for message in neutral.messages] == ["system", "user", "assistant", "tool", "user"]
    assert len(neutral.messages[2]["tool_calls"]) == 2
    assert RESPONSES.encode(neutral) == WHOLE


def test_a_body_is_said_in_chat_completions() -> None:
    found = OpenAIChat().encode(Request("m", body=WHOLE, api="openai-responses"))
    assert found["messages"][0] == {"role": "system", "content": "s"} and found["max_tokens"] == 5
    assert found["reasoning_effort"] == "low" and found["verbosity"] == "low"
    assert found["response_format"]["json_schema"] == {"name": "n", "schema": {}, "strict": True}
    assert found["tools"][0]["function"]["name"] == found["tool_choice"]["function"]["name"] == "f"
    plain = OpenAIChat().encode(Request("m", body={"model": "m", "input": "p"}, api="openai-responses"))
    assert plain == {"model": "m", "messages": [USER]}


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"previous_response_id": "r"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]}, "input_image"),
        ({"input": 7}, "input"),
        ({"instructions": ["a"]}, "instructions"),
        ({"text": {"format": "auto"}}, "text.format"),
    ],
)
def test_what_only_responses_can_say_is_refused(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(RowError, match=word):
        of_responses({"model": "m", "input": "p", **fields})


# Answers


@pytest.mark.parametrize(
    ("fields", "kind", "word", "retryable"),
    [
        ({"status": "failed", "error": {"code": "bio_policy", "message": "m"}}, "permanent", "bio_policy", False),
        ({"status": "failed", "error": {"code": "image_too_large"}}, "permanent", "image_too_large", False),
        ({"status": "failed", "error": {"code": "vector_store_timeout"}}, "unusable", "vector_store_timeout", True),
        ({"status": "failed", "error": {"code": "something_new"}}, "unusable", "something_new", True),
        ({"status": "failed", "error": None}, "unusable", "failed", True),
        ({"status": "failed", "error": "text"}, "unusable", "failed", True),
        ({"status": "cancelled"}, "unusable", "cancelled", True),
        ({"status": "in_progress"}, "unusable", "not_finished", True),
        ({"status": None}, "unusable", "bad_answer", True),
        ({"status": "completed", "output": None}, "unusable", "bad_answer", True),
    ],
)
def test_http_200_is_not_enough(fields: dict[str, Any], kind: str, word: str, retryable: bool) -> None:
    found = decoded(**fields)
    assert isinstance(found, Failure)
    assert (found.kind, found.type, found.retryable, found.request_id) == (kind, word, retryable, "r1")


def test_an_unknown_reason_to_be_incomplete_passes_through() -> None:
    found = decoded(
        status="incomplete",
        incomplete_details={"reason": "steered"},
        output=[said({"type": "output_text", "text": "a"})],
    )
    assert isinstance(found, Reply) and (found.output, found.finish_reason) == ("a", "steered")


def test_raw_thoughts_where_there_is_no_summary() -> None:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    found = decoded(output=[thought, said({"type": "output_text", "text": "a"})])
    assert isinstance(found, Reply) and found.reasoning == "hm"


# Streams


def stream(*events: Any) -> Reply | Failure:
    decoder = ResponsesStream()
    for event in events:
        decoder.feed(event if isinstance(event, str) else json.dumps(event))
    return decoder.finish()


def delta(text: str, kind: str = "response.output_text.delta") -> dict[str, Any]:
    return {"type": kind, "delta": text}


def test_a_stream_without_its_last_event_is_cut() -> None:
    found = stream(delta("Hel"), delta("lo"), {"type": "response.output_text.done", "text": "Hello"}, "[DONE]")
    assert isinstance(found, Failure)
    assert (found.kind, found.type, found.output_so_far) == ("unusable", "stream_cut", "Hello")


@pytest.mark.parametrize(
    ("event", "is_part"),
    [
        (delta("a"), True),
        (delta(""), False),
        (delta("a", "response.reasoning_summary_text.delta"), True),
        (delta("{", "response.function_call_arguments.delta"), True),
        (delta("no", "response.refusal.delta"), True),
        ({"type": "response.created", "response": {}}, False),
        ({"type": "something.new"}, False),
        ({"type": ["response.output_text.delta"], "delta": "a"}, False),
    ],
)
def test_what_counts_as_a_token(event: Any, is_part: bool) -> None:
    assert ResponsesStream().feed(json.dumps(event)) is is_part


@pytest.mark.parametrize("error", [{"code": "rate_limit_exceeded", "message": "m"}, {"error": {"code": 429}}])
def test_an_error_before_any_text_counts_as_its_own_status(error: dict[str, Any]) -> None:
    first, after = stream({"type": "error", **error}), stream(delta("a"), {"type": "error", **error})
    assert isinstance(first, Failure) and isinstance(after, Failure)
    assert (first.kind, first.rate_limited) == ("rejected", True)
    assert (after.kind, after.output_so_far) == ("unusable", "a")


@pytest.mark.parametrize("data", ["x", "[1]", '{"type":"response.completed","response":' + "[" * 900 + "]" * 900 + "}"])
def test_garbage_in_a_stream_is_no_answer(data: str) -> None:
    found = stream(delta("Hel"), data)
    assert isinstance(found, Failure) and (found.kind, found.output_so_far) == ("unusable", "Hel")


def test_a_last_event_without_a_response_is_no_answer() -> None:
    for response in (None, 7, {}, {"status": "completed"}):
        found = stream(delta("Hel"), {"type": "response.completed", "response": response})
        assert isinstance(found, Failure) and found.output_so_far == "Hel"
