"""From text to the JSON that fits: strict, lenient, and what is no answer at all."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from llmbatch.records import Reply, Usage
from llmbatch.rules.answer import (
    REPEATED_CHARS,
    Misfit,
    added,
    fitted,
    follow_up,
    is_object,
    loads,
    resolved,
    without_added_nulls,
)
from llmbatch.rules.schema import AnswerSchema

LABEL = AnswerSchema(
    {"type": "object", "properties": {"label": {"enum": ["a", "b"]}, "why": {"type": "string"}}, "required": ["label"]}
)
LIST = AnswerSchema({"type": "array", "items": {"type": "integer"}})
A, B = {"label": "a"}, {"label": "b"}


def said(text: Any, finish_reason: str | None = "stop") -> Reply:
    return Reply(text, finish_reason, "m", Usage())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"label":"a"}', A),
        (' \n{"label":"a"}\n\n', A),
        ('```json\n{"label":"a"}\n```', A),
        ('```\n{"label":"a"}\n```\nI chose a.', A),
        ('Here it is: {"label":"a"}. Anything else?', A),
        ('The set [1] of {x} gives {"label":"a"}', A),
        ('Draft {"label":"c"}, final {"label":"a"}', A),
        ('{"label":"a"} and again {"label": "a"}', A),
        ('<think>maybe {"label":"b"}</think>\n{"label":"a"}', A),
        ('maybe {"label":"b"}</think>{"label":"a"}', A),
        ('{"label":"a","why":"</think>"}', {"label": "a", "why": "</think>"}),
        ('{"label":"a","why":null}', A),  # OpenAI's way to leave it out
        ('{"label":"a","why":"b {\\"label\\":\\"b\\"}"}', {"label": "a", "why": 'b {"label":"b"}'}),
    ],
)
def test_the_value_in_a_text(text: str, value: Any) -> None:
    assert fitted(said(text), LABEL) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("I can not do that", "no JSON"),
        ('{"label":"c"}', r'\$\.label: "c" is not one of'),
        ('{"label":null}', r"\$\.label"),
        ('{"label":"a"} or {"label":"b"}', "2 different values"),
        ('```\n{"label":"a"}\n```\n```\n{"label":"b"}\n```', "2 different values"),
        ('{"label":"a"', "no JSON"),
        ('{"label":"a","n":NaN}', "NaN is not JSON"),
        ('{"label":"a","n":1e999}', "1e999 is beyond 64 bits"),
        ('{"label":"a","n":' + "9" * 5000 + "}", "no JSON"),
        ('{"label":"a","why":"\\ud800"}', "surrogate"),
        ("[" * 5000 + "]" * 5000, "nests deeper"),
        ("[" * 250 + "]" * 250, "nests deeper"),
    ],
)
def test_what_does_not_fit_is_asked_for_again(text: str, why: str) -> None:
    with pytest.raises(Misfit, match=why) as caught:
        fitted(said(text), LABEL)
    assert caught.value.again


@pytest.mark.parametrize(
    ("finish_reason", "why"),
    [
        ("length", "raise max_tokens"),
        ("context_length", "context"),
        ("content_filter", "refused"),
        ("tool_calls", "tool"),
        ("paused", "paused"),
    ],
)
def test_what_asking_again_would_not_mend(finish_reason: str, why: str) -> None:
    """Not even if the part that came is JSON: 12 may be the beginning of 123."""
    with pytest.raises(Misfit, match=why) as caught:
        fitted(said('{"label":"a"}', finish_reason), LABEL)
    assert not caught.value.again


def test_numbers_stay_what_they_are() -> None:
    assert loads("[123456789012345678901234567890, 1.5, 0.1]") == [123456789012345678901234567890, 1.5, 0.1]


@pytest.mark.parametrize("text", ["[1,2]", '{"answer":[1,2]}', "```json\n[1,2]\n```"])
def test_what_was_wrapped_for_the_provider_is_unwrapped(text: str) -> None:
    assert fitted(said(text), LIST) == [1, 2]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({}, '{"answer":{"answer":1}}', {"answer": 1}),
        ({"type": "string"}, '{"answer":"x"}', "x"),
        ({"type": "object", "properties": {"answer": {"type": "integer"}}}, '{"answer":1}', {"answer": 1}),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, '{"answer":{"a":1}}', {"a": 1}),
    ],
)
def test_wrapping_is_told_from_a_member_of_that_name(schema: Any, text: str, value: Any) -> None:
    assert fitted(said(text), AnswerSchema(schema)) == value


@pytest.mark.parametrize("text", ["[" * 2**20, '{"a":' * 2**18, '["' + "[" * 2**20, "[1," * 2**19, "{" * 2**20])
def test_a_hostile_text_takes_no_time(text: str) -> None:
    began_s = time.perf_counter()
    with pytest.raises(Misfit):
        fitted(said(text), LABEL)
    assert time.perf_counter() - began_s < 2


NODE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"$ref": "#"}, "note": {"type": ["string", "null"]}},
}
SHAPES = {
    "anyOf": [
        {"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "integer"}}, "required": ["kind"]},
        {
            "type": "object",
            "properties": {"kind": {"const": "b"}, "x": {"type": ["integer", "null"]}},
            "required": ["kind", "x"],
        },
    ]
}


@pytest.mark.parametrize(
    ("schema", "value", "pruned"),
    [
        (NODE, {"value": 1, "next": None, "note": None}, {"value": 1, "note": None}),
        (NODE, {"next": {"next": None, "value": None}}, {"next": {}}),
        ({"required": ["a"], "properties": {"a": {"type": "string"}}}, {"a": None}, {"a": None}),
        ({"properties": {"a": {}}}, {"a": None, "b": None}, {"a": None, "b": None}),
        ({"properties": {"a": {"enum": [1, None]}}}, {"a": None}, {"a": None}),
        ({"properties": {"a": {"enum": [1]}}}, {"a": None}, {}),
        ({"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}, {"a": None}, {"a": None}),
        ({"type": "array", "items": NODE}, [{"next": None}, None], [{}, None]),
        ({"type": "object", "additionalProperties": NODE}, {"k": {"next": None}}, {"k": {}}),
        ({"allOf": [NODE]}, {"next": None}, {}),
        (SHAPES, {"kind": "a", "x": None}, {"kind": "a"}),
        (SHAPES, {"kind": "b", "x": None}, {"kind": "b", "x": None}),
        ({"$ref": "#"}, {"a": None}, {"a": None}),
        (NODE, 5, 5),
    ],
)
def test_nulls_that_stand_for_nothing_go(schema: Any, value: Any, pruned: Any) -> None:
    assert without_added_nulls(value, schema, schema) == pruned


@pytest.mark.parametrize(
    ("schema", "whole"),
    [
        ({"type": "object"}, True),
        ({"properties": {}}, True),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}}, True),
        ({"type": "array"}, False),
        ({"type": ["object", "null"], "properties": {}}, False),
        ({"type": "object", "anyOf": [{}]}, False),
        ({"$ref": "#"}, False),
        ({}, False),
    ],
)
def test_which_schemas_have_an_object_at_their_root(schema: Any, whole: bool) -> None:
    assert is_object(schema) is whole


@pytest.mark.parametrize(
    ("reference", "found"),
    [("#/a~1b", 1), ("#/c~0d", 2), ("#/e%20f", 3), ("#/g/1", 5), ("#/g/9", None), ("#/h", None), ("#anchor", None)],
)
def test_pointers(reference: str, found: Any) -> None:
    assert resolved({"a/b": 1, "c~d": 2, "e f": 3, "g": [4, 5]}, reference) == found


def test_the_follow_up_holds_the_answer_and_what_is_wrong() -> None:
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    messages = follow_up(asked, "x" * 100_000, ["$.a: bad", "$.b: worse"])
    assert messages[:2] == asked
    assert messages[2] == {"role": "assistant", "content": "x" * REPEATED_CHARS}
    assert messages[3]["role"] == "user" and "- $.a: bad\n- $.b: worse" in messages[3]["content"]
    assert json.dumps(messages)
    assert [one["role"] for one in follow_up(asked, " ", ["empty"])] == ["system", "user", "user"]


def test_usage_is_added_where_it_is_known() -> None:
    assert added(Usage(1, 2, None, 4, None), Usage(10, None, None, 40, 5)) == Usage(11, 2, None, 44, 5)


@pytest.mark.parametrize(
    ("inner", "goes"),
    [
        ({"type": "string"}, True),
        ({"allOf": [{"type": "string"}, {"minLength": 1}]}, True),
        ({"allOf": [{"minLength": 1}]}, False),
        ({"type": ["string", "null"]}, False),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, False),
        ({"enum": ["a", None]}, False),
        ({"enum": ["a"]}, True),
        ({"const": "a"}, True),
        ({}, False),
        ({"$ref": "#/$defs/text"}, True),
        ({"$ref": "#/$defs/circle"}, False),
    ],
)
def test_a_null_that_was_not_asked_for_goes(inner: dict[str, Any], goes: bool) -> None:
    defs = {"text": {"type": "string"}, "circle": {"$ref": "#/$defs/circle"}}
    schema = {"type": "object", "properties": {"a": inner}, "$defs": defs}
    assert without_added_nulls({"a": None}, schema, schema) == ({} if goes else {"a": None})
