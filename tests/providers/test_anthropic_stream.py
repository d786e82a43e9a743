"""Streamed messages: what the fixtures do not show."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmbatch.files.results import result_line
from llmbatch.providers.anthropic_stream import MessagesStream
from llmbatch.records import Failure, Reply, Result

START = {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 5, "output_tokens": 1}}}
STOP = {"type": "message_stop"}


def block(kind: str, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **more}}


def delta(words: str, index: int = 0) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": words}}


def arguments(json_text: str, index: int = 0) -> dict[str, Any]:
    news = {"type": "input_json_delta", "partial_json": json_text}
    return {"type": "content_block_delta", "index": index, "delta": news}


def end(reason: Any = "end_turn", usage: Any = None) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


def error(word: str, message: str = "m") -> dict[str, Any]:
    return {"type": "error", "error": {"type": word, "message": message}}


def read(*events: Any) -> Reply | Failure:
    decoder = MessagesStream()
    for event in events:
        decoder.feed(event if isinstance(event, str) else json.dumps(event))
    return decoder.finish()


def reply(*events: Any) -> Reply:
    found = read(*events)
    assert isinstance(found, Reply), found
    return found


def failure(*events: Any) -> Failure:
    found = read(*events)
    assert isinstance(found, Failure), found
    return found


@pytest.mark.parametrize(
    "events",
    [
        [START, delta("a")],
        [START, delta("a"), STOP],
        [START, delta("a"), end()],
        [START, delta("a"), end(None), STOP],
        [START, delta("a"), "[DONE]"],
        [START, delta("a"), end(), "[1]"],
    ],
)
def test_only_a_stop_reason_and_message_stop_end_an_answer(events: list[Any]) -> None:
    found = failure(*events)
    assert (found.kind, found.retryable, found.output_so_far) == ("unusable", True, "a")


def test_nothing_counts_after_the_end() -> None:
    assert reply(START, delta("a"), end(), STOP, delta("b"), error("api_error")).output == "a"


def test_blocks_stand_in_the_order_in_which_they_began() -> None:
    events = [block("text", 1, text=""), block("text", 0, text="b"), delta("a", 1)]
    assert reply(START, *events, end(), STOP).output == "ab"


def test_a_block_that_begins_in_the_place_of_another_does_not_take_it_away() -> None:
    events = [block("text", text=""), delta("a"), block("text", text=""), delta("b")]
    assert reply(START, *events, end(), STOP).output == "ab"


def test_a_start_may_carry_the_first_words() -> None:
    assert reply(START, block("text", text="Hel"), delta("lo"), end(), STOP).output == "Hello"


def test_a_delta_without_a_start_is_read() -> None:
    assert reply(START, delta("a"), delta("b"), end(), STOP).output == "ab"


def test_the_arguments_of_the_servers_own_tools_are_not_ours() -> None:
    found = reply(
        START,
        block("server_tool_use", 0, id="s", name="web_search", input={}),
        arguments('{"query":"x"}', 0),
        block("web_search_tool_result", 1, content=[{"type": "text", "text": "no"}]),
        block("text", 2, text=""),
        delta("a", 2),
        end(),
        STOP,
    )
    assert (found.output, found.tool_calls) == ("a", None)


@pytest.mark.parametrize(
    ("given", "parts", "expected"),
    [
        ({}, [], "{}"),
        ({}, ["", '{"a":', "1}"], '{"a":1}'),
        ({"a": 1}, [], '{"a":1}'),  # servers that give it all at once
        ({"a": 1}, ['{"a":2}'], '{"a":2}'),
        ({}, ['{"a":'], '{"a":'),  # cut at max_tokens: as it came
    ],
)
def test_arguments(given: dict[str, Any], parts: list[str], expected: str) -> None:
    call = block("tool_use", id="t", name="f", input=given)
    found = reply(START, call, *map(arguments, parts), end("tool_use"), STOP)
    assert found.tool_calls == [{"id": "t", "type": "function", "function": {"name": "f", "arguments": expected}}]


def test_later_counts_replace_earlier_ones_and_nulls_say_nothing() -> None:
    usage = {"input_tokens": None, "output_tokens": 9, "cache_read_input_tokens": 7}
    found = reply(START, delta("a"), end(None, {"output_tokens": 3}), end("end_turn", usage), STOP)
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.cached_input_tokens) == (12, 9, 7)


@pytest.mark.parametrize(
    ("word", "status", "kind", "fatal"),
    [
        ("overloaded_error", 529, "rejected", False),
        ("rate_limit_error", 429, "rejected", False),
        ("api_error", 500, "rejected", False),
        ("timeout_error", 504, "ambiguous", False),
        ("invalid_request_error", 400, "permanent", False),
        ("authentication_error", 401, "permanent", True),
        ("billing_error", 402, "permanent", True),
    ],
)
def test_an_error_before_any_part_of_the_answer_counts_as_its_status(
    word: str, status: int, kind: str, fatal: bool
) -> None:
    found = failure(START, {"type": "ping"}, error(word))
    assert (found.http_status, found.kind, found.fatal, found.message) == (status, kind, fatal, "m")


@pytest.mark.parametrize("begun", [delta("a"), block("thinking", thinking=""), block("tool_use", id="t", name="f")])
@pytest.mark.parametrize("word", ["overloaded_error", "billing_error"])
def test_an_error_after_a_part_of_the_answer_may_have_been_billed(begun: dict[str, Any], word: str) -> None:
    found = failure(START, begun, error(word))
    assert (found.kind, found.retryable, found.fatal) == ("unusable", True, False)


@pytest.mark.parametrize(
    "event", [error("of_tomorrow"), {"type": "error"}, {"type": "error", "error": 5}, {"error": "x"}]
)
def test_an_error_of_an_unknown_kind_is_unusable(event: dict[str, Any]) -> None:
    found = failure(START, event)
    assert (found.kind, found.retryable) == ("unusable", True) and found.message


@pytest.mark.parametrize(
    ("event", "news"),
    [
        (START, False),
        ({"type": "ping"}, False),
        (block("text", text=""), False),
        (block("text", text="a"), True),
        (block("thinking", thinking=""), False),
        (block("tool_use", id="t", name="f", input={}), True),
        (delta(""), False),
        (delta("a"), True),
        (end(), False),
        ({"type": "of_tomorrow", "delta": {"type": "text_delta", "text": "a"}}, False),
        ({}, False),
    ],
)
def test_which_events_are_the_first_token(event: dict[str, Any], news: bool) -> None:
    assert MessagesStream().feed(json.dumps(event)) is news


def test_halves_of_a_character_meet_again() -> None:
    halves = [json.dumps(delta(half)) for half in ("a\ud83c", "\udf89")]
    assert all("\\ud" in half for half in halves)
    found = reply(START, *halves, end(), STOP)
    assert found.output == "a🎉"


@pytest.mark.parametrize(
    "where",
    [
        '{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"f","input":%s}}',
        '{"type":"message_delta","delta":{"stop_details":%s}}',
        '{"type":"message_delta","usage":%s}',
        '{"type":"message_start","message":{"model":"m","x":%s}}',
    ],
)
@pytest.mark.parametrize("levels", [190, 300, 900])
def test_what_is_nested_too_deeply_never_breaks_the_writer(where: str, levels: int) -> None:
    found = read(where % ('{"a":' * levels + '"\\ud800"' + "}" * levels), delta("a", 1), end(), STOP)
    if isinstance(found, Reply):
        assert result_line(Result(1, None, None, found, None, 1, None, None, None))
    else:
        assert found.kind == "unusable"
