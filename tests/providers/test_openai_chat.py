"""What is particular to OpenAI Chat Completions and its imitations."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from llmbatch.files.results import result_line
from llmbatch.providers.manners import PLAIN
from llmbatch.providers.openai_chat import OpenAIChat
from llmbatch.providers.openai_stream import ChatStream
from llmbatch.providers.openai_usage import usage_of
from llmbatch.providers.services import SERVICES
from llmbatch.records import Failure, Reply, Request, Result, Usage
from llmbatch.rules.nesting import MAX_NESTING

CHAT = OpenAIChat()
NONE: CIMultiDict[str] = CIMultiDict()


def answer(message: dict[str, Any], finish_reason: Any = "stop", **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": finish_reason, **more}]}).encode()


def reply(raw: bytes) -> Reply:
    outcome = CHAT.decode(200, NONE, raw)
    assert isinstance(outcome, Reply), outcome
    return outcome


def failure(raw: bytes, headers: dict[str, str] | None = None, status: int = 200) -> Failure:
    outcome = CHAT.decode(status, CIMultiDict(headers or {}), raw)
    assert isinstance(outcome, Failure), outcome
    return outcome


def stream(*events: Any) -> Reply | Failure:
    decoder = ChatStream()
    for event in events:
        decoder.feed(event if isinstance(event, str) else json.dumps(event))
    return decoder.finish()


def delta(content: str | None = None, finish_reason: Any = None, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": content, **more}, "finish_reason": finish_reason}]}


# Requests


@pytest.mark.parametrize(
    ("openai", "request_", "body"),
    [
        (False, Request("m", [{"a": 1}]), {"model": "m", "messages": [{"a": 1}]}),
        (False, Request("m", [], {"max_tokens": 5}), {"model": "m", "messages": [], "max_tokens": 5}),
        (True, Request("m", [], {"max_tokens": 5}), {"model": "m", "messages": [], "max_completion_tokens": 5}),
        (True, Request("m", [], {}, {"max_tokens": 5}), {"model": "m", "messages": [], "max_completion_tokens": 5}),
        (False, Request("m", [], {"seed": 2}, {"seed": 1, "x": 3}), {"model": "m", "messages": [], "seed": 2, "x": 3}),
        (False, Request("m", [], {"model": "row"}), {"model": "row", "messages": []}),
        (True, Request("m", body={"model": "b", "max_tokens": 5}), {"model": "b", "max_tokens": 5}),
    ],
)
def test_encode(openai: bool, request_: Request, body: dict[str, Any]) -> None:
    assert OpenAIChat(SERVICES["openai"].manners if openai else PLAIN).encode(request_) == body


def test_a_streamed_request_asks_for_usage() -> None:
    body = CHAT.streamed({"model": "m", "stream": False})
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True}


# Whole answers


@pytest.mark.parametrize(
    ("message", "output"),
    [
        ({"content": "a"}, "a"),
        ({"content": ""}, ""),
        ({"content": None}, ""),
        ({}, ""),
        ({"content": None, "refusal": "I can not."}, "I can not."),
        ({"content": "\x1b[31m\u202e"}, "\x1b[31m\u202e"),  # kept exactly; made safe only on a screen
        ({"content": "🎉"}, "🎉"),
    ],
)
def test_output(message: dict[str, Any], output: str) -> None:
    assert reply(answer(message)).output == output


@pytest.mark.parametrize(
    "message",
    [{}, {"content": None}, {"content": ""}, {"content": None, "tool_calls": [], "refusal": "", "reasoning": None}],
)
@pytest.mark.parametrize("finish_reason", [None, "", 7])
def test_an_answer_with_nothing_in_it_and_no_end_is_not_ok(message: dict[str, Any], finish_reason: Any) -> None:
    found = failure(answer(message, finish_reason))
    assert (found.kind, found.type, found.retryable) == ("unusable", "no_answer", True)


@pytest.mark.parametrize(
    "message",
    [
        {"content": "a"},
        {"content": None, "refusal": "no"},
        {"content": "", "reasoning": "hm"},
        {"reasoning_content": "hm"},
        {"content": None, "tool_calls": [{"id": "a"}]},
    ],
)
def test_some_servers_leave_out_the_finish_reason_of_a_good_answer(message: dict[str, Any]) -> None:
    assert reply(answer(message, None)).finish_reason is None


@pytest.mark.parametrize("name", ["tool_calls", "reasoning", "content", "elsewhere"])
@pytest.mark.parametrize("levels", [300, 900, 100_000])
@pytest.mark.parametrize("surrogate", ["", "\\ud800"])
def test_an_answer_nested_too_deeply_to_be_written_is_not_ok(name: str, levels: int, surrogate: str) -> None:
    nest = f'"{surrogate}",' + "[" * levels + "]" * levels
    raw = f'{{"choices":[{{"message":{{"content":"a","{name}":[{nest}]}},"finish_reason":"stop"}}]}}'
    found = failure(raw.encode())
    assert (found.kind, found.retryable) == ("unusable", True)


def test_an_answer_nested_as_deeply_as_allowed_can_be_written() -> None:
    nest: Any = []
    for _ in range(MAX_NESTING - 6):
        nest = [nest]
    ok = reply(answer({"content": "a", "tool_calls": [nest]}))
    line = result_line(Result(1, "a", None, ok, None, 1, None, None, None))
    assert orjson.loads(line)["tool_calls"] == [nest]


def test_many_brackets_in_a_text_are_no_nesting() -> None:
    assert reply(answer({"content": "[" * 1000})).output == "[" * 1000


@pytest.mark.parametrize("status", [200, 400, 429])
@pytest.mark.parametrize("name", ["code", "type", "message", "error"])
def test_an_error_nested_deeply_is_still_an_error(status: int, name: str) -> None:
    nest = "[" * 1000 + "]" * 1000
    raw = f'{{"error":{nest}}}' if name == "error" else f'{{"error":{{"{name}":{nest}}}}}'
    assert failure(raw.encode(), status=status).http_status == status
    choice = f'{{"choices":[{{"message":{{"content":""}},"error":{nest}}}]}}'
    assert failure(choice.encode()).kind == "unusable"
    streamed_ = stream(raw)
    assert isinstance(streamed_, Failure) and streamed_.message


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "tool_calls", "something_new"])
def test_any_finish_reason_passes_through(reason: str) -> None:
    assert reply(answer({"content": "a"}, reason)).finish_reason == reason


def test_a_choice_that_ended_in_an_error_is_not_ok() -> None:
    """OpenRouter: the upstream broke off, the text so far stands in ``content``."""
    assert failure(answer({"content": "half"}, "error")).kind == "unusable"
    broken = failure(answer({"content": "half"}, "stop", error={"code": 502, "message": "upstream broke"}))
    assert broken.maybe_billed and "upstream broke" in broken.message


@pytest.mark.parametrize(
    "escaped",
    [rb'"\ud800"', rb'"\udc00\ud800"', rb'"\uD83D"', rb'"a\ud83d\ude00\ud800"'],
)
def test_a_lone_surrogate_is_kept_as_its_escape(escaped: bytes) -> None:
    output = reply(b'{"choices":[{"message":{"content":' + escaped + b'},"finish_reason":"stop"}]}').output
    output.encode()  # can be written
    assert "\\ud8" in output


@pytest.mark.parametrize(
    "prefix", [b"\n\n  ", b"\xef\xbb\xbf", b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n"]
)
def test_what_some_servers_send_before_the_json(prefix: bytes) -> None:
    """DeepSeek keeps a connection alive by blank lines, OpenRouter by comments."""
    assert reply(prefix + answer({"content": "a"})).output == "a"


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", "empty_answer"),
        (b"  \n", "empty_answer"),
        (b"<!doctype html><title>x</title>", "html_answer"),
        (b" <HTML>", "html_answer"),
        (b'{"choices":[{"message":{"content":"a"}', "bad_json"),
        (b'{"a":NaN}', "bad_json"),
        (rb'{"a":NaN,"b":"\ud800"}', "bad_json"),
        (b'{"choices":[]} {"choices":[]}', "bad_json"),
        ("é".encode("latin-1"), "bad_json"),
        (b"{}", "bad_answer"),
        (b"[]", "bad_answer"),
        (b'{"choices":[]}', "bad_answer"),
        (b'{"choices":[null]}', "bad_answer"),
        (b'{"choices":[{}]}', "bad_answer"),
        (b'{"choices":[{"message":{"content":7}}]}', "bad_answer"),
    ],
)
def test_unusable(raw: bytes, word: str) -> None:
    found = failure(raw, {"x-request-id": "r1"})
    assert (found.kind, found.type, found.http_status, found.retryable) == ("unusable", word, 200, True)
    assert found.request_id == "r1"


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (502, 502, "ambiguous"),
        ("429", 429, "rejected"),
        (400, 400, "permanent"),
        ("server_error", 200, "unusable"),
        (None, 200, "unusable"),
        (200, 200, "unusable"),
        ("²", 200, "unusable"),  # isdigit() says yes, int() says no
        ("٤٠٠", 200, "unusable"),
        ("9" * 5000, 200, "unusable"),
        (5021, 200, "unusable"),
        (True, 200, "unusable"),
        ([502], 200, "unusable"),
    ],
)
def test_an_error_inside_200_counts_as_its_own_code(code: Any, status: int, kind: str) -> None:
    found = failure(json.dumps({"error": {"code": code, "message": "m"}}).encode(), {"Retry-After": "4"})
    assert (found.http_status, found.kind) == (status, kind)
    assert found.rate_limited is (status == 429)


def test_a_rate_limit_inside_200_keeps_its_retry_after() -> None:
    assert failure(b'{"error":{"code":429,"message":"m"}}', {"Retry-After": "4"}).retry_after_s == 4.0


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        (None, Usage()),
        ([], Usage()),
        ("12", Usage()),
        ({}, Usage()),
        ({"prompt_tokens": 3, "completion_tokens": 0}, Usage(3, 0)),
        ({"prompt_tokens": -1, "completion_tokens": "7"}, Usage()),
        ({"prompt_tokens": 1.5, "completion_tokens": True}, Usage()),
        ({"prompt_tokens": 3, "prompt_tokens_details": None, "completion_tokens_details": 4}, Usage(3)),
        ({"prompt_tokens_details": {"cached_tokens": 2}}, Usage(cached_input_tokens=2)),
        ({"completion_tokens_details": {"reasoning_tokens": 2}}, Usage(reasoning_tokens=2)),
        (
            {"prompt_tokens_details": {"audio_tokens": 2}, "completion_tokens_details": {"audio_tokens": 3}},
            Usage(media={"audio": 5}),
        ),
    ],
)
def test_usage_unknown_is_none_never_zero(reported: Any, usage: Usage) -> None:
    assert usage_of(reported) == usage


# Streams


def test_chunks_are_joined() -> None:
    outcome = stream(delta("Hel"), delta("lo"), delta(None, "stop"), "[DONE]")
    assert isinstance(outcome, Reply) and outcome.output == "Hello" and outcome.finish_reason == "stop"


def test_a_finish_reason_without_done_is_complete() -> None:
    outcome = stream(delta("Hello", "stop"))
    assert isinstance(outcome, Reply) and outcome.output == "Hello"


def test_done_without_a_finish_reason_is_not_ok() -> None:
    """Proxies write ``[DONE]`` in a finally block, also when the model broke off."""
    outcome = stream(delta("Hel"), "[DONE]")
    assert isinstance(outcome, Failure) and outcome.type == "stream_cut" and outcome.output_so_far == "Hel"
    assert outcome.retryable and outcome.maybe_billed


@pytest.mark.parametrize(
    ("event", "is_part"),
    [
        (delta("a"), True),
        (delta(""), False),
        (delta(None, role="assistant"), False),
        (delta(None, reasoning_content="hm"), True),
        (delta(None, reasoning="hm"), True),
        (delta(None, refusal="no"), True),
        (delta(None, tool_calls=[{"index": 0, "function": {"arguments": "{"}}]), True),
        (delta(None, "stop"), False),
        ({"choices": [], "usage": {"prompt_tokens": 1}}, False),
    ],
)
def test_what_counts_as_a_token(event: Any, is_part: bool) -> None:
    assert ChatStream().feed(json.dumps(event)) is is_part


def test_only_the_first_of_several_choices_is_read() -> None:
    outcome = stream(delta("A"), delta("x", index=1), delta("B", "stop"), delta("y", "length", index=1), "[DONE]")
    assert isinstance(outcome, Reply) and (outcome.output, outcome.finish_reason) == ("AB", "stop")


def test_an_emoji_cut_between_two_chunks_is_whole_again() -> None:
    """Servers that cut text by UTF-16 units send each half as an escape."""
    outcome = stream(
        '{"choices":[{"delta":{"content":"a\\ud83d"}}]}',
        '{"choices":[{"delta":{"content":"\\ude00b"},"finish_reason":"stop"}]}',
    )
    assert isinstance(outcome, Reply) and outcome.output == "a😀b"


def test_half_an_emoji_in_a_stream_can_be_written() -> None:
    outcome = stream('{"choices":[{"delta":{"content":"a\\ud83d"},"finish_reason":"stop"}]}')
    assert isinstance(outcome, Reply) and outcome.output == "a\\ud83d"


def test_tool_calls_are_joined_by_index() -> None:
    parts = [
        {"index": 1, "id": "b", "function": {"name": "two", "arguments": ""}},
        {"index": 0, "id": "a", "function": {"name": "one", "arguments": '{"x"'}},
        {"index": 0, "function": {"arguments": ":1}"}},
    ]
    outcome = stream(*(delta(None, tool_calls=[part]) for part in parts), delta(None, "tool_calls"))
    assert isinstance(outcome, Reply) and outcome.tool_calls is not None
    assert [(call["id"], call["function"]) for call in outcome.tool_calls] == [
        ("a", {"name": "one", "arguments": '{"x":1}'}),
        ("b", {"name": "two", "arguments": ""}),
    ]


@pytest.mark.parametrize("places", [{}, {"index": 0}], ids=["no index", "one index"])
@pytest.mark.parametrize("together", [True, False])
def test_calls_that_a_server_does_not_number_stay_apart(places: dict[str, int], together: bool) -> None:
    parts = [
        {**places, "id": "a", "function": {"name": "one", "arguments": "{}"}},
        {**places, "id": "b", "function": {"name": "two", "arguments": '{"x"'}},
    ]
    more = {**places, "id": "b", "function": {"arguments": ":1}"}}
    chunks = [[*parts, more]] if together else [[parts[0]], [parts[1]], [more]]
    outcome = stream(*(delta(None, tool_calls=calls) for calls in chunks), delta(None, "tool_calls"))
    assert isinstance(outcome, Reply) and outcome.tool_calls is not None
    assert [(call["id"], call["function"]) for call in outcome.tool_calls] == [
        ("a", {"name": "one", "arguments": "{}"}),
        ("b", {"name": "two", "arguments": '{"x":1}'}),
    ]


def test_calls_without_index_and_id_stay_apart() -> None:
    calls = [{"function": {"name": name, "arguments": "{}"}} for name in ("one", "two")]
    outcome = stream(delta(None, "tool_calls", tool_calls=calls))
    assert isinstance(outcome, Reply) and outcome.tool_calls is not None
    assert [call["function"]["name"] for call in outcome.tool_calls] == ["one", "two"]


def test_a_call_of_the_older_functions_is_streamed_too() -> None:
    parts = [{"name": "f", "arguments": '{"x"'}, {"arguments": ":1}"}]
    streamed = stream(*(delta(None, function_call=part) for part in parts), delta(None, "function_call"))
    whole = reply(answer({"content": None, "function_call": {"name": "f", "arguments": '{"x":1}'}}, "function_call"))
    assert isinstance(streamed, Reply) and whole.tool_calls
    assert streamed.tool_calls == whole.tool_calls and streamed.finish_reason == "tool_calls"


def test_a_call_of_a_custom_tool_is_streamed_too() -> None:
    parts = [{"index": 0, "id": "a", "type": "custom", "custom": {"name": "sh", "input": "l"}}]
    parts += [{"index": 0, "custom": {"input": "s"}}]
    call = {"id": "a", "type": "custom", "custom": {"name": "sh", "input": "ls"}}
    streamed = stream(*(delta(None, tool_calls=[part]) for part in parts), delta(None, "tool_calls"))
    assert isinstance(streamed, Reply) and streamed.tool_calls == [call]
    assert reply(answer({"content": None, "tool_calls": [call]}, "tool_calls")).tool_calls == [call]


def test_a_thought_under_both_names_is_told_once() -> None:
    both = {"reasoning": "hm", "reasoning_content": "hm"}
    streamed = stream(delta(None, **both), delta("a"), delta(None, "stop"))
    assert isinstance(streamed, Reply) and streamed.reasoning == "hm"
    assert reply(answer({"content": "a", **both})).reasoning == "hm"


@pytest.mark.parametrize("garbage", [{"x": 1}, ["hm"], 7])
def test_a_thought_that_is_no_text_is_not_written(garbage: Any) -> None:
    assert reply(answer({"content": "a", "reasoning": garbage, "reasoning_content": garbage})).reasoning is None


@pytest.mark.parametrize(
    "tool_calls",
    [7, "x", {}, [None], [{"index": None}], [{"index": []}], [{"index": "a"}, {"index": 0}],
     [{"function": "f"}], [{"function": {"name": 7, "arguments": {"a": 1}}}]],
)  # fmt: skip
def test_garbage_in_tool_calls_never_raises(tool_calls: Any) -> None:
    assert isinstance(stream(delta("a", tool_calls=tool_calls), delta(None, "stop")), Reply | Failure)


@pytest.mark.parametrize("event", ["", "x", "[1]", "null", '{"choices"', "7"])
def test_what_is_no_json_object_is_an_error_worth_one_more_try(event: str) -> None:
    outcome = stream(delta("Hel"), event, delta("lo", "stop"))
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.type, outcome.retryable, outcome.output_so_far) == (
        "unusable",
        "bad_stream",
        True,
        "Hel",
    )


@pytest.mark.parametrize(
    ("error", "word"),
    [
        ({"message": "m", "type": "server_error", "code": None}, "server_error"),
        ({"message": "m", "code": 429}, "rate_limit_exceeded"),
        ({"message": "m", "code": 502}, "bad_gateway"),
        ({"message": "m"}, "stream_error"),
        ("text", "stream_error"),
        ([1], "stream_error"),
    ],
)
def test_an_error_in_mid_stream_is_named_and_may_have_been_billed(error: Any, word: str) -> None:
    outcome = stream(delta("Hel"), {"error": error})
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.type, outcome.retryable, outcome.output_so_far) == ("unusable", word, True, "Hel")


@pytest.mark.parametrize(
    ("code", "kind", "retryable", "rate_limited"),
    [(429, "rejected", True, True), ("503", "rejected", True, False), (400, "permanent", False, False)],
)
def test_an_error_before_any_text_counts_as_its_own_code(
    code: Any, kind: str, retryable: bool, rate_limited: bool
) -> None:
    outcome = stream({"error": {"code": code, "message": "m"}})
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.retryable, outcome.rate_limited) == (kind, retryable, rate_limited)


def test_a_stream_whose_finish_reason_is_error_is_not_ok() -> None:
    outcome = stream(delta("Hel"), delta("", "error"), "[DONE]")
    assert isinstance(outcome, Failure) and outcome.kind == "unusable" and outcome.output_so_far == "Hel"


def test_usage_in_the_last_chunk_or_in_every_chunk() -> None:
    outcome = stream(
        {**delta("a"), "usage": {"prompt_tokens": 5, "completion_tokens": 1}},
        {**delta("b", "stop"), "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
        "[DONE]",
    )
    assert isinstance(outcome, Reply) and outcome.usage == Usage(5, 2)


# Error answers


@pytest.mark.parametrize(
    ("status", "body", "word", "fatal"),
    [
        (404, {"error": {"message": "The model does not exist", "code": "model_not_found"}}, "model_not_found", True),
        (404, {"error": {"message": 'model "x" not found, try pulling it first'}}, "model_not_found", True),
        (404, {"detail": "Not Found"}, "not_found", True),
        (401, {"error": {"message": "m", "code": "invalid_api_key"}}, "invalid_api_key", True),
        (401, {"error": "invalid_grant"}, "invalid_api_key", True),
        (429, {"error": {"message": "m", "type": "insufficient_quota"}}, "rate_limit_exceeded", True),
        (429, {"error": {"message": "m", "code": "billing_hard_limit_reached"}}, "billing_hard_limit_reached", True),
        (400, {"error": {"message": "m", "code": "content_policy_violation"}}, "content_policy_violation", False),
        (422, {"error": {"message": "`inputs` tokens + `max_new_tokens` must be <= 4096"}},
         "context_length_exceeded", False),
        (400, {"error": {"message": "m"}}, "bad_request", False),
        (418, {"error": {"message": "m"}}, "http_418", False),
    ],
)  # fmt: skip
def test_error_types(status: int, body: Any, word: str, fatal: bool) -> None:
    found = failure(json.dumps(body).encode(), status=status)
    expected = "insufficient_quota" if word == "rate_limit_exceeded" and fatal else word
    assert (found.type, found.fatal) == (expected, fatal)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"m1"}}', "m1"),
        (b'{"error":"m2"}', "m2"),
        (b'{"object":"error","message":"m3"}', "m3"),
        (b'{"message":"m4"}', "m4"),
        (b'{"detail":"m5"}', "m5"),
        (b'{"detail":[{"loc":["body","seed"],"msg":"no such field"},{"msg":"b"},7]}', "body.seed: no such field; b"),
        (b"m6", "m6"),
        (b"", "HTTP 400 without a message"),
        (b'{"error":{"message":["m7"]}}', '{"error":{"message":["m7"]}}'),
    ],
)
def test_five_shapes_of_error_bodies(body: bytes, message: str) -> None:
    assert failure(body, status=400).message == message


@pytest.mark.parametrize(
    ("error", "word", "fatal"),
    [
        ({"message": "Invalid key", "code": 403}, "permission_denied", True),
        ({"message": "m", "code": "invalid_api_key"}, "invalid_api_key", True),
        ({"message": "m", "type": "permission_error"}, "permission_denied", True),
        ({"message": "Country, region, or territory not supported", "code": "unsupported_country_region_territory"},
         "unsupported_country_region_territory", True),
        ({"message": "Your account is not active"}, "permission_denied", True),
        ({"message": "Project `p` does not have access to model `m`", "code": "model_not_found"},
         "model_not_found", True),
        ({"message": "You are not allowed to sample from this model"}, "permission_denied", True),
        ({"message": "Not authenticated"}, "permission_denied", True),
        ({"message": "Request blocked"}, "permission_denied", False),
        ({}, "permission_denied", False),
        ({"message": "The keyword list is long"}, "permission_denied", False),
        ({"message": "openai/x requires moderation. Your input was flagged for 'violence'", "code": 403},
         "content_filter", False),
        ({"message": "m", "code": "content_policy_violation"}, "content_policy_violation", False),
        ({"message": "This breaks the content policy; your account may be closed"}, "content_filter", False),
        ({"message": "m", "type": "moderation_error"}, "content_filter", False),
    ],
)  # fmt: skip
def test_a_403_is_fatal_only_if_every_row_would_meet_it(error: dict[str, Any], word: str, fatal: bool) -> None:
    found = failure(json.dumps({"error": error}).encode(), status=403)
    assert (found.kind, found.type, found.fatal, found.retryable) == ("permanent", word, fatal, False)


def test_a_403_page_of_a_firewall_stops_no_other_row() -> None:
    assert not failure(b"<html><title>403 Forbidden</title>You are unable to access example.com", status=403).fatal


def test_402_with_a_retry_after_is_a_pause_not_the_end() -> None:
    """OpenRouter's budget for what is in flight."""
    found = failure(b"{}", {"Retry-After": "3"}, 402)
    assert (found.retryable, found.rate_limited, found.fatal, found.retry_after_s) == (True, True, False, 3.0)


def test_a_redirect_is_refused_and_names_its_target() -> None:
    found = failure(b"", {"Location": "https://evil.example/v1"}, 307)
    assert found.fatal and not found.retryable and "https://evil.example/v1" in found.message


def test_an_out_of_money_answer_is_final_whatever_the_server_says_of_retrying() -> None:
    found = failure(b'{"error":{"code":"insufficient_quota"}}', {"x-should-retry": "true"}, 429)
    assert found.fatal and not found.retryable and not found.rate_limited


def test_how_many_choices_came_and_which_tier_was_charged() -> None:
    choice = {"message": {"content": "a"}, "finish_reason": "stop"}
    document = {"choices": [choice, choice], "service_tier": "flex", "usage": {"prompt_tokens_details": {}}}
    found = reply(json.dumps(document).encode())
    assert (found.choices, found.service_tier) == (2, "flex")
    found = reply(json.dumps({**document, "choices": [choice], "service_tier": 7}).encode())
    assert (found.choices, found.service_tier) == (1, None)


def test_how_many_choices_a_stream_had_and_which_tier_was_charged() -> None:
    found = stream(delta("a"), {**delta("b", index=1), "service_tier": "flex"}, delta(None, "stop"))
    assert isinstance(found, Reply)
    assert (found.output, found.choices, found.service_tier) == ("a", 2, "flex")
    found = stream(delta("a", "stop"))
    assert isinstance(found, Reply) and (found.choices, found.service_tier) == (1, None)


@pytest.mark.parametrize(("written", "known"), [(7, 7), (0, 0), (-1, None), ("7", None), (None, None)])
def test_what_was_written_to_the_cache_is_read_where_it_is_told(written: Any, known: int | None) -> None:
    usage = {"prompt_tokens": 9, "prompt_tokens_details": {"cache_write_tokens": written}}
    document = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": usage}
    assert reply(json.dumps(document).encode()).usage.cache_write_tokens == known


def test_the_text_so_far_can_be_read_at_any_time() -> None:
    decoder = ChatStream()
    assert decoder.text == ""
    decoder.feed(json.dumps(delta("Hel")))
    assert decoder.text == "Hel"
    refused = ChatStream()
    refused.feed(json.dumps(delta(None, refusal="no")))
    assert refused.text == "no"


# What servers of this dialect say in their own way


@pytest.mark.parametrize(
    ("message", "reason", "normal", "native"),
    [
        ({"content": "a"}, "stop", "stop", None),
        ({"content": "a"}, "end_turn", "stop", "end_turn"),
        ({"content": "a"}, "eos_token", "stop", "eos_token"),
        ({"content": "a"}, "max_tokens", "length", "max_tokens"),
        ({"content": "a"}, "model_length", "context_length", "model_length"),
        ({"content": "a"}, "something_new", "something_new", None),
        ({"content": None, "tool_calls": [{"id": "c"}]}, "tool_calls", "tool_calls", None),
        ({"content": None, "tool_calls": [{"id": "c"}]}, "stop", "tool_calls", "stop"),
        ({"content": None, "tool_calls": [{"id": "c"}]}, "length", "length", None),
        ({"content": None, "function_call": {"name": "f", "arguments": "{}"}}, "function_call", "tool_calls",
         "function_call"),
        ({"content": None, "refusal": "no"}, "stop", "content_filter", "stop"),
        ({"content": "half"}, "content_filter", "content_filter", None),
    ],
)  # fmt: skip
def test_why_an_answer_ended_in_one_set_of_words(
    message: dict[str, Any], reason: str, normal: str, native: str | None
) -> None:
    whole = reply(answer(message, reason))
    assert (whole.finish_reason, whole.native_finish_reason) == (normal, native)
    if "function_call" in message:
        assert whole.tool_calls == [{"type": "function", "function": message["function_call"]}]
    else:
        calls = [{"index": 0, **call} for call in message.get("tool_calls") or []]
        streamed_ = stream(delta(message.get("content"), reason, refusal=message.get("refusal"), tool_calls=calls))
        assert isinstance(streamed_, Reply)
        assert (streamed_.finish_reason, streamed_.native_finish_reason) == (normal, native)


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_a_model_that_broke_off_gave_no_answer(reason: str) -> None:
    for outcome in (failure(answer({"content": "half"}, reason)), stream(delta("half", reason))):
        assert isinstance(outcome, Failure)
        assert (outcome.kind, outcome.type, outcome.retryable) == ("unusable", "stream_error", True)


def test_an_answer_of_which_the_filter_left_nothing_is_final_and_paid_for() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1}
    choice = {"message": {"content": ""}, "finish_reason": "content_filter"}
    whole = failure(json.dumps({"choices": [choice], "usage": usage}).encode())
    streamed_ = stream({**delta("", "content_filter"), "usage": usage}, "[DONE]")
    for outcome in (whole, streamed_):
        assert isinstance(outcome, Failure)
        assert (outcome.kind, outcome.type, outcome.retryable) == ("permanent", "content_filter", False)
        assert outcome.usage == Usage(9, 1)


def test_mistrals_chunks_of_text_and_thought() -> None:
    chunks = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "a"},
        {"type": "x"},
    ]
    for outcome in (reply(answer({"content": chunks})), stream(delta(chunks), delta("b", "stop"))):  # type: ignore[arg-type]
        assert isinstance(outcome, Reply) and outcome.reasoning == "hm" and outcome.output in ("a", "ab")
    assert failure(answer({"content": ["a"]})).type == "bad_answer"


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        ({"cost": 0.0000037, "is_byok": False}, 0.0000037),
        ({"cost": 0}, 0.0),
        ({"cost": 0.1, "is_byok": True, "cost_details": {"upstream_inference_cost": 2.0}}, 2.1),
        ({"cost": 0.1, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, None),
        ({"cost": -1}, None),
        ({"cost": "1"}, None),
        ({"cost": True}, None),
        ({"cost": 10**18}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_price_that_openrouter_names(usage: Any, usd: float | None) -> None:
    openrouter = OpenAIChat(SERVICES["openrouter"].manners)
    document = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": usage}
    whole = openrouter.decode(200, NONE, json.dumps(document).encode())
    decoder = openrouter.stream_decoder()
    decoder.feed(json.dumps({**delta("a", "stop"), "usage": usage}))
    for outcome in (whole, decoder.finish()):
        assert isinstance(outcome, Reply) and outcome.charged_usd == usd
    assert reply(json.dumps(document).encode()).charged_usd is None  # elsewhere it may mean anything


def test_usage_where_groq_and_deepseek_have_it() -> None:
    outcome = stream(
        delta("a", "stop"), {"choices": [], "x_groq": {"usage": {"prompt_tokens": 5, "completion_tokens": 1}}}
    )
    assert isinstance(outcome, Reply) and outcome.usage == Usage(5, 1)
    assert usage_of({"prompt_cache_hit_tokens": 64}).cached_input_tokens == 64
    both = {"prompt_cache_hit_tokens": 64, "prompt_tokens_details": {"cached_tokens": 0}}
    assert usage_of(both).cached_input_tokens == 0


def test_a_path_may_name_the_model() -> None:
    assert OpenAIChat(path="/d/{model}/c?v=1").path("a/b") == "/d/a%2Fb/c?v=1"
