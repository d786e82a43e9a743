"""Forms of JSON Schemas: what each provider documents that it takes, and never tighter than the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbatch.errors import OptionsError
from llmbatch.providers.schema_forms import (
    anthropic_schema,
    chat_fields,
    gemini_schema,
    instructed,
    openai_schema,
)
from llmbatch.rules.answer import WRAP, is_object, without_added_nulls
from llmbatch.rules.reasons import RowError
from llmbatch.rules.schema import AnswerSchema

Schema = dict[str, Any]
FREE: Schema = {"type": "object", "additionalProperties": {"type": "integer"}}
NODE: Schema = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"value": {"type": "string"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
            "required": ["value", "kids"],
        }
    },
    "$ref": "#/$defs/Node",
}


def member(schema: Any, form: Any = openai_schema) -> Any:
    """The form of one required member."""
    made = form({"type": "object", "properties": {"m": schema}, "required": ["m"]})
    return made.get("schema", made)["properties"]["m"]


@pytest.mark.parametrize(
    ("schema", "openai", "anthropic", "gemini"),
    [
        ({"type": "string"}, ..., ..., ...),
        (
            {"type": "string", "minLength": 2, "pattern": "^a"},
            {"type": "string", "pattern": "^a", "description": "(minLength: 2)"},
            {"type": "string", "description": '(minLength: 2; pattern: "^a")'},
            {"type": "string", "description": '(minLength: 2; pattern: "^a")'},
        ),
        (
            {"type": "string", "pattern": "^(?!a)"},
            *[{"type": "string", "description": '(pattern: "^(?!a)")'}] * 3,
        ),
        ({"type": "string", "format": "date"}, ..., ..., ...),
        (
            {"type": "string", "format": "uri"},
            {"type": "string", "description": '(format: "uri")'},
            ...,
            {"type": "string", "description": '(format: "uri")'},
        ),
        (
            {"type": "integer", "minimum": 0, "exclusiveMaximum": 9},
            ...,
            {"type": "integer", "description": "(exclusiveMaximum: 9; minimum: 0)"},
            {"type": "integer", "minimum": 0, "description": "(exclusiveMaximum: 9)"},
        ),
        (
            {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 3, "uniqueItems": True},
            {
                "type": "array",
                "items": {"type": "null"},
                "minItems": 1,
                "maxItems": 3,
                "description": "(uniqueItems: true)",
            },
            {
                "type": "array",
                "items": {"type": "null"},
                "minItems": 1,
                "description": "(uniqueItems: true) (maxItems: 3)",
            },
            {
                "type": "array",
                "items": {"type": "null"},
                "minItems": 1,
                "maxItems": 3,
                "description": "(uniqueItems: true)",
            },
        ),
        ({"const": "a"}, *[{"type": "string", "const": "a"}] * 2, {"type": "string", "enum": ["a"]}),
        ({"enum": [1, 2]}, *[{"type": "integer", "enum": [1, 2]}] * 3),
        (
            {"enum": ["a", True, False, None], "title": "T"},
            *[
                {
                    "anyOf": [
                        {"type": "string", "enum": ["a"]},
                        {"type": "boolean", "enum": [True, False]},
                        {"type": "null"},
                    ],
                    "title": "T",
                }
            ]
            * 2,
            {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "boolean"}, {"type": "null"}], "title": "T"},
        ),
        (
            {"oneOf": [{"type": "string"}, {"type": "integer"}], "default": 3},
            *[{"anyOf": [{"type": "string"}, {"type": "integer"}], "description": "(default: 3)"}] * 3,
        ),
        ({"type": ["string", "null"]}, *[{"anyOf": [{"type": "string"}, {"type": "null"}]}] * 3),
        (
            {"type": "string", "description": "A.", "not": {"const": "x"}},
            *[{"type": "string", "description": 'A. (not: {"const": "x"})'}] * 3,
        ),
        (
            {"allOf": [{"properties": {"a": {"type": "null"}}, "required": ["a"]}, {"title": "T"}]},
            *[
                {
                    "type": "object",
                    "properties": {"a": {"type": "null"}},
                    "required": ["a"],
                    "additionalProperties": False,
                    "title": "T",
                }
            ]
            * 2,
            {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "title": "T"},
        ),
    ],
)
def test_forms(schema: Any, openai: Any, anthropic: Any, gemini: Any) -> None:
    for form, expected in ((openai_schema, openai), (anthropic_schema, anthropic), (gemini_schema, gemini)):
        assert member(schema, form) == (schema if expected is ... else expected), form


def test_optional_members_are_required_ones_that_may_be_null() -> None:
    optional = {"a": {"type": "string"}, "b": {"type": ["string", "null"]}, "c": {"$ref": "#/$defs/c"}}
    schema = {"type": "object", "properties": optional, "$defs": {"c": {"type": "integer"}}}
    form = openai_schema(schema)["schema"]
    assert form["required"] == ["a", "b", "c"]
    assert form["properties"] == {
        "a": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "b": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "c": {"anyOf": [{"$ref": "#/$defs/c"}, {"type": "null"}]},
    }
    assert anthropic_schema(schema)["required"] == []


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (FREE, "members of any name"),
        ({"type": "object"}, "members of any name"),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": True}, "any name"),
        ({"type": "object", "patternProperties": {"^a": {}}}, "patterns"),
        ({"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False}, "does not stand"),
        ({}, "no type"),
        (True, "no type"),
        ({"minLength": 3}, "no type"),
        ({"enum": [{"a": 1}]}, "can not be listed"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "can not be made one"),
        ({"type": "array", "prefixItems": [{"type": "string"}]}, "go on"),
        (
            {"type": "object", "properties": {"a": {"type": "null"}}, "anyOf": [{"properties": {"b": {}}}]},
            "beside and inside",
        ),
        ({"$ref": "#anchor"}, "no path"),
    ],
)
def test_what_can_not_be_said_without_changing_it(schema: Any, why: str) -> None:
    whole = {"type": "object", "properties": {"m": schema}, "required": ["m"]}
    assert openai_schema(whole) == {"name": "answer", "schema": whole, "strict": False}
    with pytest.raises(RowError, match=rf"--schema can not be sent to this API: at (\$\.m|#).* {why}"):
        anthropic_schema(whole)
    assert gemini_schema(whole)["properties"].keys() == {"m"}


def test_an_array_without_items_is_open_to_openai_only() -> None:
    whole = {"type": "object", "properties": {"m": {"type": "array"}}}
    assert openai_schema(whole)["strict"] is False
    assert anthropic_schema(whole)["properties"]["m"] == gemini_schema(whole)["properties"]["m"] == {"type": "array"}


@pytest.mark.parametrize("form", [openai_schema, anthropic_schema, gemini_schema])
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}},
        {"enum": ["a", "b"]},
        {"anyOf": [{"type": "object", "properties": {"a": {"type": "string"}}}, {"type": "null"}]},
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "string"}}},
    ],
)
def test_a_root_that_is_no_object_is_wrapped(form: Any, schema: Schema) -> None:
    made = form(schema)
    made = made.get("schema", made)
    assert made["type"] == "object" and made["required"] == [WRAP] and list(made["properties"]) == [WRAP]


def test_references_still_hold_in_the_wrapping_of_what_is_not_strict() -> None:
    tree = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}}, {"$ref": "#/$defs/f"}]}
    sent = openai_schema({**tree, "$defs": {"f": FREE}})
    assert sent["strict"] is False
    check = AnswerSchema(sent["schema"])
    assert check.problems({WRAP: [1, [2, {"k": 3}]]}) == []
    assert check.problems({WRAP: [1, ["x"]]}) and check.problems([1])


def test_recursion() -> None:
    assert openai_schema(NODE)["strict"] is True
    assert openai_schema(NODE)["schema"]["type"] == "object"  # not a mere reference
    assert gemini_schema(NODE)["$defs"]["Node"]["required"] == ["value"]  # in optional members only
    tree = {"type": "object", "properties": {"kid": {"$ref": "#"}}}
    assert openai_schema(tree)["schema"]["$defs"]["root"]["properties"]["kid"]["anyOf"][0] == {"$ref": "#/$defs/root"}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"$ref": "#"}]},
        {"allOf": [{"$ref": "#"}, {"type": "object"}]},
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a", "type": "object", "properties": {}, "$defs": {"a": {"allOf": [{"$ref": "#"}]}}},
    ],
)
def test_a_circle_without_an_end_hangs_nobody(schema: Schema) -> None:
    openai_schema(schema)
    gemini_schema(schema)


def _deep(levels: int) -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def _wide(count: int) -> Schema:
    return {"type": "object", "properties": {f"p{number}": {"type": "null"} for number in range(count)}}


def _values(count: int, chars: int = 1) -> Schema:
    return {"type": "object", "properties": {"a": {"enum": [f"{number:0{chars}}" for number in range(count)]}}}


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (_deep(10), True),
        (_deep(11), False),
        (_wide(5_000), True),
        (_wide(5_001), False),
        (_values(1_000), True),
        (_values(1_001), False),
        (_values(251, 59), True),
        (_values(251, 60), False),
        (_values(250, 400), True),
        (_values(250, 500), False),
    ],
)
def test_openais_limits(schema: Schema, strict: bool) -> None:
    assert openai_schema(schema)["strict"] is strict


def test_what_the_form_is_made_of_is_not_changed() -> None:
    before = json.dumps(NODE)
    for form in (openai_schema, anthropic_schema, gemini_schema):
        form(NODE)
    assert json.dumps(NODE) == before


@pytest.mark.parametrize(
    ("messages", "system"),
    [
        ([{"role": "user", "content": "u"}], ""),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "u"}], "Be brief.\n\n"),
    ],
)
def test_servers_without_schemas_are_told(messages: list[dict[str, Any]], system: str) -> None:
    told = instructed(messages, {"type": "array"})
    assert told[-1] == {"role": "user", "content": "u"} and len(told) == 2
    assert told[0]["role"] == "system" and told[0]["content"].startswith(f"{system}Answer with JSON")
    sent = json.loads(told[0]["content"].rpartition("\n")[2])
    assert sent["properties"] == {WRAP: {"type": "array"}}


def test_a_system_message_of_parts_gets_one_more() -> None:
    parts = [{"type": "text", "text": "Be brief."}]
    told = instructed([{"role": "developer", "content": parts}], {"type": "object"})
    assert told[0]["content"][0] == parts[0] and "JSON" in told[0]["content"][1]["text"]


def test_the_fields_of_a_chat_request() -> None:
    messages, schema = [{"role": "user", "content": "u"}], {"type": "object", "properties": {"a": {"type": "null"}}}
    whole = chat_fields(messages, schema, "json_schema")
    assert whole == {"response_format": {"type": "json_schema", "json_schema": openai_schema(schema)}}
    assert chat_fields(messages, schema, "none") == {"messages": instructed(messages, schema)}
    assert chat_fields(messages, schema, "json_object")["response_format"] == {"type": "json_object"}


# Random schemas, and a value that fits each of them with all members present.

_SCALARS: list[tuple[st.SearchStrategy[Schema], Any]] = [
    (st.builds(lambda low: {"type": "string", "minLength": low}, st.integers(0, 3)), "abc"),
    (st.just({"type": "string", "pattern": "^a", "description": "d"}), "abc"),
    (st.just({"type": "string", "format": "date"}), "2026-01-01"),
    (st.builds(lambda low: {"type": "integer", "minimum": low, "multipleOf": 1}, st.integers(-9, 5)), 5),
    (st.just({"type": "number", "exclusiveMaximum": 9, "default": 1}), 5.5),
    (st.just({"type": ["boolean", "null"]}), True),
    (st.just({"enum": ["a", None, 3, True]}), 3),
    (st.just({"const": "a", "title": "T"}), "a"),
    (st.just({"$ref": "#/$defs/shared", "description": "d"}), [{"x": 1}]),
    (st.just({"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "items": False}), ["a", None]),
    (st.just({"allOf": [{"type": "string"}, {"minLength": 1}]}), "a"),
]
_SHARED = {
    "type": "array",
    "maxItems": 2,
    "items": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}
Pair = tuple[Schema, Any]


def _objects(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    def made(members: dict[str, Pair], optional: set[str], closed: bool) -> Pair:
        schema: Schema = {
            "type": "object",
            "properties": {name: one for name, (one, _) in members.items()},
            "required": [name for name in members if name not in optional],
            **({"additionalProperties": False} if closed else {}),
        }
        return schema, {name: value for name, (_, value) in members.items()}

    names = st.sampled_from("abcd")
    return st.builds(made, st.dictionaries(names, inner, min_size=1, max_size=3), st.sets(names), st.booleans())


_PAIRS = st.recursive(
    st.one_of([st.tuples(schema, st.just(value)) for schema, value in _SCALARS]),
    lambda inner: st.one_of(
        _objects(inner),
        inner.map(lambda pair: ({"type": "array", "items": pair[0], "minItems": 2}, [pair[1]] * 2)),
        inner.map(lambda pair: ({"anyOf": [{"type": "null"}, pair[0]], "description": "d"}, pair[1])),
        inner.map(lambda pair: ({"oneOf": [pair[0], {"type": "string", "const": "other"}]}, pair[1])),
    ),
    max_leaves=8,
)


def _nodes(form: Any) -> Iterator[Mapping[str, Any]]:
    yield form
    for name in ("items", "additionalProperties"):
        if isinstance(form.get(name), dict):
            yield from _nodes(form[name])
    for name in ("anyOf", "prefixItems"):
        for inner in form.get(name, ()):
            yield from _nodes(inner)
    for name in ("properties", "$defs"):
        for inner in form.get(name, {}).values():
            yield from _nodes(inner)


_COMMON = {"type", "title", "description", "properties", "required", "additionalProperties", "items", "anyOf", "enum"}
_OPENAI = _COMMON | {"const", "$ref", "$defs", "pattern", "format", "minItems", "maxItems", "multipleOf", "minimum"}
_OPENAI |= {"maximum", "exclusiveMinimum", "exclusiveMaximum"}
_ANTHROPIC = _COMMON | {"const", "$ref", "$defs", "format", "minItems"}
_GEMINI = _COMMON | {"$ref", "$defs", "format", "prefixItems", "minItems", "maxItems", "minimum", "maximum"}


def _obeys(form: Any, allowed: set[str], *, closed: bool, all_required: bool = False) -> None:
    assert form["type"] == "object"
    for node in _nodes(form):
        assert node.keys() <= allowed
        assert "$ref" not in node or set(node) == {"$ref"}
        if closed:
            assert node.keys() & {"type", "anyOf", "$ref"}
        if node.get("type") == "object":
            assert not closed or node["additionalProperties"] is False
            assert not all_required or set(node["required"]) == set(node["properties"])
            assert set(node.get("required", ())) <= set(node.get("properties", ()))


@settings(max_examples=150, deadline=None)
@given(_PAIRS)
def test_forms_obey_the_documentation_and_are_never_tighter(pair: Pair) -> None:
    schema, value = {**pair[0], "$defs": {"shared": _SHARED}}, pair[1]
    assert AnswerSchema(schema).problems(value) == []
    sent = value if is_object(schema) else {WRAP: value}
    openai, anthropic, gemini = openai_schema(schema), anthropic_schema(schema), gemini_schema(schema)
    if openai["strict"]:
        _obeys(openai["schema"], _OPENAI, closed=True, all_required=True)
    _obeys(anthropic, _ANTHROPIC, closed=True)
    assert all(node.get("minItems", 0) <= 1 for node in _nodes(anthropic))
    _obeys(gemini, _GEMINI, closed=False)
    assert all(isinstance(one, str | int | float) for node in _nodes(gemini) for one in node.get("enum", ()))
    for form in (openai["schema"], anthropic, gemini):
        assert AnswerSchema(form).problems(sent) == [], form


def _with_nulls(schema: Schema, value: Any) -> Any:
    """As a server answers that must say every member: the optional ones are null."""
    if "properties" in schema:
        return {
            name: _with_nulls(schema["properties"][name], inner) if name in schema["required"] else None
            for name, inner in value.items()
        }
    return value


@settings(max_examples=100, deadline=None)
@given(_objects(_PAIRS))
def test_a_strict_answer_with_nulls_fits_once_they_are_gone(pair: Pair) -> None:
    schema, value = {**pair[0], "$defs": {"shared": _SHARED}}, _with_nulls(*pair)
    if openai_schema(schema)["strict"]:
        assert AnswerSchema(openai_schema(schema)["schema"]).problems(value) == []
        assert AnswerSchema(schema).problems(without_added_nulls(value, schema, schema)) == []


_VALUES = st.sampled_from([None, True, 0, 1.5, "a", [], [1], {}, {"a": 1}])
_NAMES = st.sampled_from(["a", "b", "$ref", "a/b"])
_TYPES = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null"])


def _any_schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Schema]:
    several, named = st.lists(inner, min_size=1, max_size=3), st.dictionaries(_NAMES, inner, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(_TYPES, st.lists(_TYPES, min_size=1, max_size=3, unique=True)),
            "properties": named,
            "required": st.lists(_NAMES, unique=True, max_size=2),
            "additionalProperties": inner,
            "patternProperties": st.just({"^x": True}),
            "items": inner,
            "prefixItems": several,
            "anyOf": several,
            "oneOf": several,
            "allOf": several,
            "not": inner,
            "if": inner,
            "enum": st.lists(_VALUES, min_size=1, max_size=3),
            "const": _VALUES,
            "default": _VALUES,
            "minItems": st.integers(0, 3),
            "maxItems": st.integers(0, 3),
            "pattern": st.just("a+"),
            "description": st.just("d"),
            "$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/properties/a"]),
        },
    )


_ANY = st.recursive(st.booleans(), _any_schemas, max_leaves=12)


@settings(max_examples=150, deadline=None)
@given(_any_schemas(_ANY), st.dictionaries(st.sampled_from("ab"), _ANY, min_size=2))
def test_every_schema_has_a_form_or_a_reason_why_not(schema: Schema, defs: Schema) -> None:
    whole = {**schema, "$defs": defs}
    try:
        AnswerSchema(whole)
    except OptionsError:
        return
    assert chat_fields([], whole, "json_schema") and chat_fields([], whole, "json_object")
    openai, gemini = openai_schema(whole), gemini_schema(whole)
    if openai["strict"]:
        _obeys(openai["schema"], _OPENAI, closed=True, all_required=True)
    _obeys(gemini, _GEMINI, closed=False)
    try:
        _obeys(anthropic_schema(whole), _ANTHROPIC, closed=True)
    except RowError as error:
        assert str(error).startswith("--schema can not be sent to this API: at ")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": "x"},
        {"type": "object", "properties": {"a": {"type": 5}}},
        {"type": "object", "properties": {"a": {"type": [{}]}}},
        {"type": "object", "properties": {"a": {"type": "object", "properties": {}, "required": True}}},
        {"type": "object", "required": [{}]},
        {"type": "object", "properties": {"a": {"enum": 1}}},
        {"type": "object", "properties": {"a": {"anyOf": 1}}},
        {"type": "object", "properties": {"a": {"allOf": None}}},
        {"type": "array", "minItems": "x"},
        {"type": "string", "pattern": 1},
    ],
)
@pytest.mark.parametrize("form", [openai_schema, anthropic_schema, gemini_schema])
def test_what_a_row_has_for_a_schema_fails_the_row_at_most(form: Any, schema: Schema) -> None:
    try:
        form(schema)
    except RowError as error:
        assert "schema" in str(error)


def test_a_schema_too_deep_to_be_read_fails_the_row() -> None:
    schema: Schema = {"type": "string"}
    for _ in range(400):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(RowError, match="schema"):
        gemini_schema(schema)
