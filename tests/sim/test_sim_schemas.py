"""Values that fit a JSON Schema, and schemas that a vendor refuses."""

from __future__ import annotations

from typing import Any

import pytest

from llmbatch.sim.schemas import SchemaRules, complaint_about, example

NODE = {
    "type": "object",
    "required": ["name", "next"],
    "properties": {"name": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "w"),
        ({"type": "string", "minLength": 3}, "www"),
        ({"type": "string", "maxLength": 0}, ""),
        ({"type": "string", "format": "date"}, "2026-01-02"),
        ({"type": "STRING"}, "w"),
        ({"enum": ["a", "b"]}, "a"),
        ({"const": None}, None),
        ({"type": "integer"}, 1),
        ({"type": "integer", "minimum": 7}, 7),
        ({"type": "integer", "maximum": -2}, -2),
        ({"type": "integer", "exclusiveMinimum": 4, "multipleOf": 5}, 10),
        ({"type": "integer", "exclusiveMaximum": 1}, 0),
        ({"type": "number"}, 0.5),
        ({"type": "number", "minimum": 2.5}, 2.5),
        ({"type": "number", "exclusiveMinimum": 0.5, "maximum": 1}, 0.75),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["integer", "null"]}, 1),
        ({"type": "array", "items": {"type": "integer"}}, [1]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 3}, [1, 1, 1]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, []),
        ({"type": "array", "prefixItems": [{"type": "null"}, {"const": 5}]}, [None, 5]),
        ({"properties": {"a": {"type": "integer"}, "b": True}}, {"a": 1, "b": "w"}),
        ({"oneOf": [{"type": "boolean"}, {"type": "string"}]}, True),
        ({"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}]}, {"a": 1, "b": 2}),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer"}}}, 1),
        (True, "w"),
        ({}, "w"),
    ],
)
def test_example_fits(schema: Any, value: Any):
    assert example(schema, "w") == value


def test_a_schema_that_contains_itself_comes_to_an_end():
    value = example({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, "w")
    depth = 0
    while value is not None:
        assert value["name"] == "w"
        value, depth = value["next"], depth + 1
    assert 2 <= depth < 20


CLOSED = SchemaRules(refused={"allOf"}, closed=True, all_required=True, object_root=True, lone_references=True)
GOOD = {"type": "object", "additionalProperties": False, "required": ["a"], "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (GOOD, None),
        ({**GOOD, "required": []}, "Missing 'a'"),
        ({**GOOD, "additionalProperties": True}, "additionalProperties"),
        ({**GOOD, "anyOf": [{}]}, "'type: \"object\"'"),
        ({**GOOD, "properties": {"a": {"allOf": []}}}, "'allOf' is not permitted"),
        ({**GOOD, "properties": {"a": {"$ref": "#", "title": "t"}}}, "$ref cannot have keywords"),
        ({**GOOD, "properties": {"a": {"type": "array", "items": {"type": "object"}}}}, "additionalProperties"),
        ({"type": "string"}, "got 'type: \"string\"'"),
        ([], "must be an object"),
    ],
)
def test_strict_rules(schema: Any, says: str | None):
    complaint = complaint_about(schema, CLOSED)
    assert complaint == says if says is None else says in str(complaint)


def test_keywords_and_items_outside_the_list_are_refused():
    rules = SchemaRules(keywords={"type", "minItems", "items"}, most_min_items=1)
    assert complaint_about({"type": "array", "minItems": 1}, rules) is None
    assert "'pattern'" in str(complaint_about({"type": "array", "items": {"pattern": "x"}}, rules))
    assert "'minItems'" in str(complaint_about({"type": "array", "minItems": 2}, rules))
