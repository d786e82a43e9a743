"""Is it a schema at all, and does a value fit it?"""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmbatch.errors import OptionsError
from llmbatch.rules.schema import MAX_PROBLEMS, MAX_SCHEMA_BYTES, AnswerSchema, json_path, schema_of

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["name"],
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "no JSON"),
        (b"\xff\xfe{}", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'["object"]', "no JSON object"),
        (b"{" + b" " * MAX_SCHEMA_BYTES + b"}", "more than 262,144 bytes"),
        (b'{"properties": {"a": {"type": "strin"}}}', r"no valid JSON Schema: \$\.properties\.a\.type: "),
        (b'{"properties": {"a": 5}}', r"\$\.properties\.a: 5 is not of types"),
        (b'{"pattern": "(["}', r"\$\.pattern: "),
        (b'{"$ref": "#/$defs/none"}', r"/\$defs/none' does not exist"),
        (b'{"$schema": "http://example.com/own"}', "meta-schema"),
        (b'{"items": {"$ref": "http://127.0.0.1:9/x.json"}}', r"\$\.items refers to 'http://127.0.0.1:9/x.json'"),
        (b'{"items": {"$ref": "file:///etc/passwd"}}', r"\$\.items refers to 'file:///etc/passwd'"),
        (b'{"name": "x", "strict": true, "schema": {"type": "object"}}', 'only what stands under "schema"'),
        (b'{"type": "json_schema", "json_schema": {"schema": {}}}', 'only what stands under "schema"'),
        (b'{"label": "positive"}', "nothing in it is a word of JSON Schema, so any answer would fit"),
        (b'{"anyOf": [{"$ref": "other.json#/a"}]}', r"\$\.anyOf\[0\] refers to"),
    ],
)
def test_what_is_no_schema_is_refused_with_the_place(text: bytes, said: str) -> None:
    with pytest.raises(OptionsError, match=f"FILE: .*{said}"):
        schema_of(text, "FILE")


def test_a_byte_order_mark_is_no_part_of_it() -> None:
    assert schema_of(b"\xef\xbb\xbf" + json.dumps(PERSON).encode(), "FILE") == PERSON


@pytest.mark.parametrize("schema", [{"enum": [float("nan")]}, {"const": {1, 2}}, {"title": "\ud800"}])
def test_from_python_too_it_must_be_json(schema: Any) -> None:
    with pytest.raises(OptionsError, match="schema: it can not be written as JSON"):
        AnswerSchema(schema)


@pytest.mark.parametrize("schema", [{}, {"title": "anything"}, {"type": "object", "schema": {}}, {"not": {}}])
def test_few_words_or_none_and_words_of_others_are_a_schema(schema: Any) -> None:
    assert AnswerSchema(schema).schema == schema


def test_a_reference_in_a_value_is_none() -> None:
    assert AnswerSchema({"const": {"$ref": "http://example.com"}}).problems({"$ref": "http://example.com"}) == []


@pytest.mark.parametrize(
    ("value", "problems"),
    [
        ({"name": "Al", "tags": ["a"]}, []),
        ({"name": "A"}, ['$.name: "A" is shorter than 2 characters']),
        ({"name": "Al", "tags": ["a", "c"]}, ['$.tags[1]: "c" is not one of "a" or "b"']),
        ({}, ['$: "name" is a required property']),
    ],
)
def test_problems_name_the_place(value: Any, problems: list[str]) -> None:
    assert AnswerSchema(PERSON).problems(value) == problems


def test_problems_are_few_and_short() -> None:
    problems = AnswerSchema({"items": {"type": "integer"}}).problems(["x" * 10_000] * 50)
    assert len(problems) == MAX_PROBLEMS
    assert all(len(problem) < 500 for problem in problems)


@pytest.mark.parametrize(
    ("value", "fits"), [(3, True), (3.0, True), (2**70, True), (3.5, False), (True, False), ("3", False)]
)
def test_integers(value: Any, fits: bool) -> None:
    assert (AnswerSchema({"type": "integer"}).problems(value) == []) is fits


def test_the_draft_that_the_schema_names_counts() -> None:
    tuple_of_old = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}
    assert AnswerSchema(tuple_of_old).problems([3])
    assert AnswerSchema({"prefixItems": [{"type": "string"}]}).problems([3])


def test_paths() -> None:
    assert json_path(["a", 0, "b c"]) == '$.a[0]["b c"]'
