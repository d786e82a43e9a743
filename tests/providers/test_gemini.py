"""What is particular to Gemini's generateContent: requests, and whole answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from llmbatch.providers.gemini import Gemini
from llmbatch.providers.schema_forms import gemini_schema
from llmbatch.records import Failure, Reply, Request, Usage
from llmbatch.rules.reasons import RowError

GEMINI = Gemini()
NONE: CIMultiDict[str] = CIMultiDict()
FIXTURES = Path(__file__).parent / "fixtures" / "gemini"
HI = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": PARAMETERS}}
STRICT = {"type": "function", "function": {"name": "weather", "strict": True}}


def body_of(params: dict[str, Any] | None = None, messages: Any = HI, **more: Any) -> dict[str, Any]:
    return dict(GEMINI.encode(Request("gemini-3.8-flash", messages, params or {}, **more)))


def turns_of(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = body_of(messages=list(messages))["contents"]
    return turns


def call(identity: str | None, name: str, arguments: str, **more: Any) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def answer(*parts: Any, finish: Any = "STOP", **more: Any) -> bytes:
    candidate = {"content": {"role": "model", "parts": list(parts)}, "finishReason": finish}
    return json.dumps({"candidates": [candidate], **more}).encode()


def reply(raw: bytes) -> Reply:
    outcome = GEMINI.decode(200, NONE, raw)
    assert isinstance(outcome, Reply), outcome
    return outcome


def failure(raw: bytes) -> Failure:
    outcome = GEMINI.decode(200, NONE, raw)
    assert isinstance(outcome, Failure), outcome
    return outcome


# Where


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-3.8-flash", "/models/gemini-3.8-flash"),
        ("models/gemini-3.8-flash", "/models/gemini-3.8-flash"),
        ("tunedModels/mine", "/tunedModels/mine"),
        ("other/mine", "/models/other%2Fmine"),
        ("a?b#c:d", "/models/a%3Fb%23c%3Ad"),
        ("models/../../v1/x", "/models/..%2F..%2Fv1%2Fx"),
    ],
)
def test_the_model_stands_in_the_path_and_can_not_leave_it(model: str, path: str) -> None:
    assert GEMINI.path(model) == f"{path}:generateContent"
    assert GEMINI.path(model, stream=True) == f"{path}:streamGenerateContent?alt=sse"


# Requests


def test_the_documented_request() -> None:
    documented = json.loads((FIXTURES / "gem_request.json").read_bytes())
    said = documented["generationConfig"]["responseJsonSchema"]
    body = body_of(
        {"max_tokens": 512, "seed": 3, "reasoning_effort": "low"},
        [{"role": "system", "content": "Reply with JSON."}, {"role": "user", "content": "Capital of Peru?"}],
        schema=said,
    )
    documented["generationConfig"]["responseJsonSchema"] = gemini_schema(said)
    assert body == documented


@pytest.mark.parametrize(
    ("params", "config"),
    [
        ({"temperature": 0.2, "top_p": 0.9, "top_k": 40}, {"temperature": 0.2, "topP": 0.9, "topK": 40}),
        ({"max_completion_tokens": 5}, {"maxOutputTokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 5}, {"maxOutputTokens": 5}),
        ({"stop": "a"}, {"stopSequences": ["a"]}),
        ({"stop": ["a", "b"]}, {"stopSequences": ["a", "b"]}),
        ({"presence_penalty": 1, "frequency_penalty": -1}, {"presencePenalty": 1, "frequencyPenalty": -1}),
        ({"logprobs": True, "top_logprobs": 3}, {"responseLogprobs": True, "logprobs": 3}),
        ({"n": 1}, {"candidateCount": 1}),
        ({"reasoning_effort": "xhigh"}, {"thinkingConfig": {"thinkingLevel": "XHIGH"}}),
        ({"reasoning_effort": "none"}, {"thinkingConfig": {"thinkingBudget": 0}}),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            {"responseMimeType": "application/json", "responseJsonSchema": gemini_schema(SCHEMA)},
        ),
        (
            {"reasoning_effort": "low", "generationConfig": {"thinkingConfig": {"includeThoughts": True}}},
            {"thinkingConfig": {"thinkingLevel": "LOW", "includeThoughts": True}},
        ),
        ({"max_tokens": 5, "generationConfig": {"maxOutputTokens": 7}}, {"maxOutputTokens": 7}),
    ],
)
def test_generation_config(params: dict[str, Any], config: dict[str, Any]) -> None:
    assert body_of(params)["generationConfig"] == config
    assert body_of(extra=params)["generationConfig"] == config


@pytest.mark.parametrize(
    ("params", "members"),
    [
        ({}, {}),
        ({"response_format": {"type": "text"}, "parallel_tool_calls": True, "service_tier": "auto"}, {}),
        ({"service_tier": "flex", "store": False}, {"serviceTier": "flex", "store": False}),
        ({"service_tier": "default"}, {"serviceTier": "standard"}),
        ({"cachedContent": "cachedContents/a", "safetySettings": []}, {"cachedContent": "cachedContents/a"}),
        ({"tool_choice": "auto"}, {"toolConfig": {"functionCallingConfig": {"mode": "AUTO"}}}),
        ({"tool_choice": "none"}, {"toolConfig": {"functionCallingConfig": {"mode": "NONE"}}}),
        ({"tool_choice": "required"}, {"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}}},
        ),
        (
            {"tool_choice": "auto", "toolConfig": {"retrievalConfig": {"languageCode": "de"}}},
            {"toolConfig": {"functionCallingConfig": {"mode": "AUTO"}, "retrievalConfig": {"languageCode": "de"}}},
        ),
        ({"tools": [STRICT]}, {"toolConfig": {"functionCallingConfig": {"mode": "VALIDATED"}}}),
        ({"tool_choice": "none", "tools": [STRICT]}, {"toolConfig": {"functionCallingConfig": {"mode": "NONE"}}}),
    ],
)
def test_what_stands_beside_the_config(params: dict[str, Any], members: dict[str, Any]) -> None:
    body = body_of(params)
    assert {name: body[name] for name in body.keys() - {"contents", "tools", "safetySettings"}} == members


def test_tools() -> None:
    assert body_of({"tools": [WEATHER, {"googleSearch": {}}, {"type": "function", "function": {"name": "now"}}]})[
        "tools"
    ] == [
        {
            "functionDeclarations": [
                {"name": "weather", "description": "d", "parametersJsonSchema": PARAMETERS},
                {"name": "now"},
            ]
        },
        {"googleSearch": {}},
    ]


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"logit_bias": {}}, "logit_bias"),
        ({"verbosity": "low"}, "verbosity"),
        ({"user": "u"}, "user"),
        ({"metadata": {}}, "metadata"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"service_tier": "scale"}, "service_tier"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": 1}}, "response_format"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"tools": [{"type": "function", "function": {"name": "f", "cache_control": 1}}]}, "cache_control"),
        ({"tools": [{"type": "function", "function": {"name": "f"}, "cache_control": {}}]}, "cache_control"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tool_choice": "f"}, "tool_choice"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "maxOutputTokens"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_what_has_no_word_is_refused_by_its_name(params: dict[str, Any], named: str) -> None:
    with pytest.raises(RowError, match=named):
        body_of(params)
    with pytest.raises(RowError, match=named):
        body_of(extra=params)


def test_the_row_wins_over_the_command_line() -> None:
    assert body_of({"seed": 2}, extra={"seed": 1, "top_k": 3})["generationConfig"] == {"seed": 2, "topK": 3}


def test_a_schema_wins_over_a_response_format() -> None:
    body = body_of({"response_format": {"type": "json_object"}}, schema=SCHEMA)
    assert body["generationConfig"]["responseJsonSchema"] == gemini_schema(SCHEMA)


def test_a_body_of_chat_completions_is_translated() -> None:
    body = {"model": "m", "messages": [*HI, {"role": "assistant", "content": "Yes?"}], "max_tokens": 5}
    assert GEMINI.encode(Request("m", body=body, extra={"seed": 1})) == {
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}, {"role": "model", "parts": [{"text": "Yes?"}]}],
        "generationConfig": {"maxOutputTokens": 5, "seed": 1},
    }


def test_texts_to_embed_are_refused() -> None:
    with pytest.raises(RowError, match="embeddings"):
        GEMINI.encode(Request("m", input="a"))


# Turns


def test_system_messages_stand_apart() -> None:
    body = body_of(
        messages=[
            {"role": "system", "content": "a"},
            {"role": "developer", "content": [{"type": "text", "text": "b"}]},
            *HI,
            {"role": "system", "content": ""},
        ]
    )
    assert body["systemInstruction"] == {"parts": [{"text": "a"}, {"text": "b"}]}
    assert body["contents"] == [{"role": "user", "parts": [{"text": "Hi"}]}]


def test_turns_of_one_role_become_one() -> None:
    assert turns_of(
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "assistant", "content": "d", "refusal": None, "annotations": []},
        {"role": "assistant", "content": None, "refusal": "No."},
    ) == [
        {"role": "user", "parts": [{"text": "a"}, {"text": "b"}, {"text": "c"}]},
        {"role": "model", "parts": [{"text": "d"}, {"text": "No."}]},
    ]


def test_calls_and_what_they_gave() -> None:
    signed = {"extra_content": {"google": {"thought_signature": "c2ln"}}}
    assert turns_of(
        *HI,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call("c1", "weather", '{"city":"Łódź"}', **signed), call("c2", "now", "")],
        },
        {"role": "tool", "tool_call_id": "c2", "content": "noon"},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": [{"type": "text", "text": '{"t":3}'}]},
        {"role": "user", "content": "So?"},
    )[1:] == [
        {
            "role": "model",
            "parts": [
                {
                    "functionCall": {"id": "c1", "name": "weather", "args": {"city": "Łódź"}},
                    "thoughtSignature": "c2ln",
                },
                {"functionCall": {"id": "c2", "name": "now", "args": {}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "c2", "name": "now", "response": {"result": "noon"}}},
                {"functionResponse": {"id": "c1", "name": "weather", "response": {"t": 3}}},
                {"text": "So?"},
            ],
        },
    ]


def test_a_call_comes_back_as_it_went() -> None:
    part = {"functionCall": {"id": "fc", "name": "f", "args": {"a": [1]}}, "thoughtSignature": "c2ln"}
    calls = reply(answer(part)).tool_calls
    assert calls is not None
    assert turns_of(*HI, {"role": "assistant", "content": None, "tool_calls": list(calls)})[1]["parts"] == [part]


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("data:image/png;base64,AAAA", {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}),
        ("data:text/plain;charset=utf-8;base64,QQ==", {"inlineData": {"mimeType": "text/plain", "data": "QQ=="}}),
        ("gs://b/a.JPG", {"fileData": {"fileUri": "gs://b/a.JPG", "mimeType": "image/jpeg"}}),
        (
            "https://generativelanguage.googleapis.com/v1beta/files/abc",
            {"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/abc"}},
        ),
    ],
)
def test_images(url: str, part: dict[str, Any]) -> None:
    image = {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}
    assert turns_of({"role": "user", "content": [image]}) == [{"role": "user", "parts": [part]}]


def image(url: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, **more}}]}]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (image("https://example.com/a.png"), "data: URL"),
        (image("http://generativelanguage.googleapis.com.example/a.png"), "data: URL"),
        (image("data:image/png,AAAA"), "base64"),
        (image("data:;base64,AAAA"), "base64"),
        (image("data:image/png;base64,"), "base64"),
        (image(None), "must be a string"),
        (image("data:image/png;base64,AAAA", detail="high"), "mediaResolution"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "input_audio"),
        ([{"role": "user", "content": "a", "name": "Ann"}], "'name'"),
        ([{"role": "assistant", "content": "a", "reasoning_content": "b"}], "reasoning_content"),
        ([{"role": "function", "content": "a"}], "role 'function'"),
        ([{"role": "system", "content": "a"}], "user's message"),
        ([{"role": "system", "content": image("gs://b/a.png")[0]["content"]}, *HI], r"messages\[0\]: .* only text"),
        ([*HI, {"role": "tool", "tool_call_id": "c", "content": "a"}], "tool_call_id"),
        ([{"role": "assistant", "tool_calls": [call("c", "f", "[1]")]}], r"messages\[0\].tool_calls\[0\]"),
        ([{"role": "assistant", "tool_calls": [call("c", "f", "{")]}], "JSON object"),
        ([{"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]}], "functions"),
        ([{"role": "user", "content": "a", "tool_calls": [call("c", "f", "{}")]}], "assistant"),
        ([{"role": "user", "content": 7}], "content"),
        (["Hi"], "no object"),
    ],
)
def test_turns_that_can_not_be_said(messages: Any, said: str) -> None:
    with pytest.raises(RowError, match=said):
        body_of(messages=messages)


# Whole answers


@pytest.mark.parametrize(
    ("parts", "output", "reasoning"),
    [
        ([{"text": "a"}, {"text": "b"}], "ab", None),
        ([{"text": "h", "thought": True}, {"text": "a", "thought": False}], "a", "h"),
        ([], "", None),
        ([{"text": ""}], "", None),
        ([{"executableCode": {"code": "1+1"}}, {"codeExecutionResult": {"output": "2"}}, {"text": "2"}], "2", None),
        ([{"text": "\ud83c"}, {"text": "\udf89"}], "\\ud83c\\udf89", None),  # each was made writable when it was read
    ],
)
def test_output(parts: list[Any], output: str, reasoning: str | None) -> None:
    found = reply(answer(*parts))
    assert (found.output, found.reasoning, found.finish_reason) == (output, reasoning, "stop")


@pytest.mark.parametrize(
    ("finish", "word"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("CONTINUATION", "paused"),
        ("SAFETY", "content_filter"),
        ("PUP_LIMITED_DISABLED", "content_filter"),
        ("NEWER_THAN_THIS", "NEWER_THAN_THIS"),
    ],
)
def test_finish_reasons(finish: str, word: str) -> None:
    found = reply(answer({"text": "a"}, finish=finish))
    assert (found.finish_reason, found.native_finish_reason) == (word, finish)


@pytest.mark.parametrize("finish", ["OTHER", "MISSING_THOUGHT_SIGNATURE", "NO_IMAGE", "UNEXPECTED_TOOL_CALL"])
@pytest.mark.parametrize("parts", [[], [{"text": "a"}]])
def test_an_answer_that_went_wrong_is_asked_again(finish: str, parts: list[Any]) -> None:
    found = failure(answer(*parts, finish=finish))
    assert (found.kind, found.type, found.retryable) == ("unusable", finish.lower(), True)


@pytest.mark.parametrize("finish", [None, 7, "", "FINISH_REASON_UNSPECIFIED"])
def test_without_a_finish_reason_an_answer_may_be_cut(finish: Any) -> None:
    found = failure(answer({"text": "a"}, finish=finish, usageMetadata={"promptTokenCount": 3}))
    assert (found.kind, found.retryable, found.usage) == ("unusable", True, Usage(3, 0, 0, 0))


def test_an_empty_answer_with_an_unknown_end_is_none() -> None:
    assert failure(answer(finish="NEWER_THAN_THIS")).type == "no_answer"


@pytest.mark.parametrize(
    "document",
    [
        {"candidates": "a"},
        {"candidates": [7]},
        {"candidates": [{"content": "a", "finishReason": "STOP"}]},
        {"candidates": [{"content": {"parts": {"text": "a"}}, "finishReason": "STOP"}]},
        {"candidates": [{"content": {"parts": [{"text": 7}]}, "finishReason": "STOP"}]},
        {"candidates": [{"content": {"parts": [{"functionCall": {"args": {}}}]}, "finishReason": "STOP"}]},
        {
            "candidates": [
                {"content": {"parts": [{"functionCall": {"name": "f", "args": [1]}}]}, "finishReason": "STOP"}
            ]
        },
        {"promptFeedback": {"safetyRatings": []}},
        {"promptFeedback": {"blockReason": "BLOCK_REASON_UNSPECIFIED"}},
    ],
)
def test_another_shape_is_no_answer(document: Any) -> None:
    found = failure(json.dumps(document).encode())
    assert (found.kind, found.type, found.retryable) == ("unusable", "bad_answer", True)


def test_pictures_in_an_answer_are_not_lost_silently() -> None:
    found = failure(answer({"text": "Here:"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}))
    assert (found.kind, found.type, found.retryable, found.maybe_billed) == ("unusable", "no_text", False, True)


def test_a_blocked_answer_says_why() -> None:
    document = {"candidates": [{"finishReason": "SPII", "finishMessage": "It has a number."}]}
    found = failure(json.dumps(document).encode())
    assert (found.type, found.message) == ("content_filter", "the answer was blocked: SPII (It has a number.)")


def test_a_cut_call_is_not_called_whole() -> None:
    assert reply(answer({"functionCall": {"name": "f"}}, finish="MAX_TOKENS")).finish_reason == "length"


def test_more_candidates_are_counted() -> None:
    candidate = {"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}
    found = reply(json.dumps({"candidates": [candidate, {**candidate, "index": 1}]}).encode())
    assert (found.output, found.choices) == ("a", 2)


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        (None, Usage()),
        ({}, Usage()),
        ({"totalTokenCount": 5}, Usage()),
        ({"promptTokenCount": 5}, Usage(5, 0, 0, 0)),
        ({"promptTokenCount": 5, "candidatesTokenCount": -1}, Usage(5, None, 0, 0)),
        ({"promptTokenCount": "5", "thoughtsTokenCount": 2}, Usage(None, 2, 0, 2)),
        ({"promptTokenCount": 5, "toolUsePromptTokenCount": 3, "cachedContentTokenCount": 4}, Usage(8, 0, 4, 0)),
    ],
)
def test_usage(said: Any, usage: Usage) -> None:
    assert reply(answer({"text": "a"}, usageMetadata=said)).usage == usage


@pytest.mark.parametrize(
    ("traffic", "tier"),
    [
        (None, None),
        ("TRAFFIC_TYPE_UNSPECIFIED", None),
        (7, None),
        ("ON_DEMAND", "standard"),
        ("ON_DEMAND_FLEX", "flex"),
        ("ON_DEMAND_PRIORITY", "priority"),
        ("PROVISIONED_THROUGHPUT", "provisioned_throughput"),
    ],
)
def test_which_tier_was_charged(traffic: Any, tier: str | None) -> None:
    assert (
        reply(answer({"text": "a"}, usageMetadata={"promptTokenCount": 1, "trafficType": traffic})).service_tier == tier
    )


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("gemini-3.8-flash", "high", {"thinkingLevel": "HIGH"}),
        ("gemini-2.5-flash", "high", {"thinkingBudget": 24576}),
        ("models/gemini-2.5-pro", "low", {"thinkingBudget": 1024}),
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
        ("gemini-2.5-flash", "xhigh", None),
    ],
)
def test_an_effort_is_a_level_or_a_budget(model: str, effort: str, thinking: dict[str, Any] | None) -> None:
    request = Request(model, [{"role": "user", "content": "Hi"}], {"reasoning_effort": effort})
    if thinking is None:
        with pytest.raises(RowError, match="'reasoning_effort' may be none, minimal, low, medium, high for"):
            Gemini().encode(request)
    else:
        assert Gemini().encode(request)["generationConfig"] == {"thinkingConfig": thinking}
