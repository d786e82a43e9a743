"""Gemini's streams: no end marker, and errors without framing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmbatch.providers.gemini_stream import RAW_JSON_BYTES, GeminiEvents, GeminiStream
from llmbatch.records import Failure, Reply

ERROR = '{\n  "error": {"code": 503, "message": "a \\"}\\" in it {", "status": "UNAVAILABLE"}\n}'


def events(raw: bytes, step: int | None = None) -> list[str]:
    decoder = GeminiEvents()
    step = step or len(raw) or 1
    return [data for start in range(0, len(raw), step) for data in decoder.feed(raw[start : start + step])]


def chunk(*parts: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}}
    return {"candidates": [candidate | ({"finishReason": finish} if finish else {})], **more}


def stream(*chunks: Any) -> Reply | Failure:
    decoder = GeminiStream()
    for one in chunks:
        decoder.feed(one if isinstance(one, str) else json.dumps(one))
    return decoder.finish()


# Events


@pytest.mark.parametrize("step", [None, 1, 2, 5])
@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ("", []),
        ("data: {}\n\n", ["{}"]),
        ("data: {}\r\n\r\ndata: [1]\r\n\r\n", ["{}", "[1]"]),
        (": {\n\ndata: a\n\n", ["a"]),
        ("data: a{\ndata: }\n\n", ["a{\n}"]),
        (ERROR, [ERROR]),
        (f"data: a\n\n{ERROR}\n", ["a", ERROR]),
        (f"data: a\r\n\r\n{ERROR}\r\n\r\ndata: b\r\n\r\n", ["a", ERROR, "b"]),
        (f"data: a\n{ERROR}", ["a", ERROR]),  # an event whose end did not come
        (f"data: a\n\n \t{ERROR}{ERROR}", ["a", ERROR]),  # a second value on the line is no line of its own
        (f"data: a\n\n[{ERROR}]\n", ["a", f"[{ERROR}]"]),
        ("data: a\n\n" + ERROR[:-1], ["a"]),
        ('{"a": "\\\\"}\n{"b": 1}\n', ['{"a": "\\\\"}', '{"b": 1}']),
        ("}\ndata: a\n\n", ["a"]),
        ('{"ł": "🎉"}', ['{"ł": "🎉"}']),
    ],
)
def test_events(raw: str, found: list[str], step: int | None) -> None:
    assert events(raw.encode(), step) == found


@pytest.mark.parametrize("step", [None, 1000])
def test_raw_json_without_end_is_bounded(step: int | None) -> None:
    found = events(b'{"error": "' + b"x" * (3 * RAW_JSON_BYTES), step)
    assert [len(data) for data in found] == [RAW_JSON_BYTES]
    outcome = stream(*found)
    assert isinstance(outcome, Failure) and outcome.type == "bad_stream" and len(outcome.message) < 1000


def test_bytes_that_are_no_text() -> None:
    for raw in (b'{"a": "\xff"}', b"data: \xff\n\n"):
        with pytest.raises(UnicodeDecodeError):
            events(raw)


# Answers


def test_complete_without_the_usage_of_the_last_chunk() -> None:
    outcome = stream(chunk({"text": "a"}, usageMetadata={"promptTokenCount": 3}), chunk({"text": "b"}, finish="STOP"))
    assert isinstance(outcome, Reply) and outcome.output == "ab" and outcome.usage.input_tokens == 3


def test_the_end_is_only_known_when_the_stream_closes() -> None:
    decoder = GeminiStream()
    assert decoder.feed(json.dumps(chunk({"text": "a"}, finish="STOP"))) and not decoder.ended
    assert not decoder.feed(json.dumps(chunk({"text": ""}, finish="STOP")))
    assert not decoder.feed(json.dumps({"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 1}}))
    assert not decoder.feed("[DONE]") and not decoder.ended
    outcome = decoder.finish()
    assert isinstance(outcome, Reply) and outcome.output == "a" and outcome.usage.output_tokens == 1


@pytest.mark.parametrize(
    ("chunks", "so_far", "retryable"),
    [
        ([], None, True),
        ([chunk({"text": "a"})], "a", True),
        ([chunk({"text": "h", "thought": True})], None, True),
        ([chunk({"text": "a"}, finish="FINISH_REASON_UNSPECIFIED")], "a", True),
    ],
)
def test_without_a_finish_reason_it_was_cut(chunks: list[Any], so_far: str | None, retryable: bool) -> None:
    outcome = stream(*chunks)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.type) == ("unusable", "stream_cut")
    assert (outcome.output_so_far, outcome.retryable) == (so_far, retryable)


@pytest.mark.parametrize("first", ["thought", "text", "call"])
def test_an_error_after_a_part_of_the_answer_may_have_been_billed(first: str) -> None:
    part = {"thought": {"text": "h", "thought": True}, "text": {"text": "a"}, "call": {"functionCall": {"name": "f"}}}
    outcome = stream(chunk(part[first]), ERROR)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.type, outcome.retryable) == ("unusable", "overloaded", True)
    assert outcome.message == 'a "}" in it {'


@pytest.mark.parametrize(
    ("error", "kind", "word", "fatal"),
    [
        ({"code": 503, "status": "UNAVAILABLE"}, "rejected", "overloaded", False),
        ({"code": 429, "status": "RESOURCE_EXHAUSTED"}, "rejected", "rate_limit_exceeded", False),
        ({"code": 8, "status": "RESOURCE_EXHAUSTED"}, "rejected", "rate_limit_exceeded", False),
        ({"code": 402, "status": "RESOURCE_EXHAUSTED"}, "permanent", "insufficient_quota", True),
        ({"code": 499, "status": "CANCELLED"}, "ambiguous", "cancelled", False),
        ({"message": "what?"}, "unusable", "stream_error", False),
        ("what?", "unusable", "stream_error", False),
    ],
)
def test_an_error_before_any_part_counts_as_its_status(error: Any, kind: str, word: str, fatal: bool) -> None:
    for data in ({"error": error}, [{"error": error}]):
        decoder = GeminiStream()
        assert not decoder.feed(json.dumps(data)) and decoder.ended
        outcome = decoder.finish()
        assert isinstance(outcome, Failure)
        assert (outcome.kind, outcome.type, outcome.fatal) == (kind, word, fatal)


def test_an_error_after_the_finish_reason_is_an_error() -> None:
    assert isinstance(stream(chunk({"text": "a"}, finish="STOP"), ERROR), Failure)


def test_a_blocked_prompt() -> None:
    outcome = stream({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 9}})
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.type, outcome.retryable) == ("permanent", "content_filter", False)
    assert outcome.usage is not None and outcome.usage.input_tokens == 9


def test_text_that_was_blocked_on_the_way_is_kept() -> None:
    outcome = stream(chunk({"text": "It goes"}), {"candidates": [{"finishReason": "RECITATION"}]})
    assert isinstance(outcome, Reply)
    assert (outcome.output, outcome.finish_reason) == ("It goes", "content_filter")


def test_the_halves_of_a_character_come_together() -> None:
    outcome = stream(chunk({"text": "\ud83c"}), chunk({"text": "\udf89"}, finish="STOP"))
    assert isinstance(outcome, Reply) and outcome.output == "🎉"


def test_halves_in_a_call_can_be_written() -> None:
    part = {"functionCall": {"name": "f\ud83c", "id": "\ud83c", "args": {"a": "\ud83c"}}}
    outcome = stream(chunk(part, finish="STOP"))
    assert isinstance(outcome, Reply) and outcome.tool_calls
    assert json.dumps(outcome.tool_calls, ensure_ascii=False).encode()


def test_a_call_nested_too_deeply_is_no_answer() -> None:
    nest: Any = {}
    for _ in range(400):
        nest = {"a": nest}
    outcome = stream(chunk({"functionCall": {"name": "f", "args": nest}}, finish="STOP"))
    assert isinstance(outcome, Failure) and outcome.kind == "unusable"


def test_calls_in_several_chunks_have_their_own_ids() -> None:
    calls = [chunk({"functionCall": {"name": name}}) for name in "fg"]
    outcome = stream(*calls, chunk(finish="STOP"))
    assert isinstance(outcome, Reply) and outcome.tool_calls and outcome.finish_reason == "tool_calls"
    assert [(one["id"], one["function"]["name"]) for one in outcome.tool_calls] == [("call_0", "f"), ("call_1", "g")]
