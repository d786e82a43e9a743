"""A JSON Schema in the form that each provider's constrained decoding takes.

What a provider does not know is taken out and told to the model in the ``description``; what can not be taken out
without changing what is asked for makes the form unstrict (OpenAI) or is refused (Anthropic). The answer is always
held against the whole schema here (rules/answer.py), so a form may be looser than the schema, never tighter.

Where the root is no object, the form is an object with the schema as its only member, WRAP; the answer comes out of
it again. An object that says nothing of further members is closed, as all providers want it and most people mean it.

Sources: OpenAI, "Structured Outputs", supported schemas; Anthropic SDK, ``lib/_parse/_transform.py``; Gemini SDK,
``types.py``, ``response_json_schema``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import orjson

from llmbatch.rules.answer import WRAP, is_object, resolved, root_of
from llmbatch.rules.reasons import RowError, excerpt

NAME = "answer"

Schema = Mapping[str, Any]
Form = dict[str, Any]

# OpenAI's limits on one strict schema.
_MOST_PROPERTIES, _MOST_LEVELS, _MOST_CHARS = 5_000, 10, 120_000
_MOST_VALUES, _MANY_VALUES, _MANY_VALUES_CHARS = 1_000, 250, 15_000
# Of one constraint that is told in words.
_TOLD_CHARS = 500
# Parts of allOf inside each other; more than this is a circle.
_MOST_MERGES = 50

_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_KINDS: dict[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties", "patternProperties"}),
    "array": frozenset({"items", "prefixItems", "additionalItems", "minItems", "maxItems"}),
    "string": frozenset({"format", "pattern", "minLength", "maxLength"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
}
_KINDS["integer"] = _KINDS["number"]
_BOUND_TO_A_KIND = frozenset().union(*_KINDS.values())
# What else constrains, and is told in words where it can not be sent.
_TOLD = (
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "uniqueItems", "contains",
    "minContains", "maxContains", "minProperties", "maxProperties", "propertyNames", "unevaluatedProperties",
    "unevaluatedItems", "contentEncoding", "contentMediaType", "default", "examples",
)  # fmt: skip
_UNIONS = ("anyOf", "oneOf")
_STRUCTURE = frozenset({"type", "properties", "items", "prefixItems", "enum", "const", "anyOf", "oneOf", "allOf"})


@dataclass(frozen=True, slots=True)
class _Dialect:
    """What one provider takes. ``closed``: every object lists its members; ``all_required``: and requires them all;
    ``any_value``: a schema may leave the type open."""

    keeps: frozenset[str]
    formats: frozenset[str]
    closed: bool = True
    all_required: bool = False
    any_value: bool = False
    patterns: bool = False
    most_min_items: int | None = None
    const: bool = True
    enum_types: tuple[str, ...] = ("string", "integer", "number", "boolean", "null")
    prefix_items: bool = False
    array_without_items: bool = True


_OPENAI = _Dialect(
    _KINDS["number"] | {"format", "pattern", "minItems", "maxItems"},
    _FORMATS,
    all_required=True,
    patterns=True,
    array_without_items=False,
)
_ANTHROPIC = _Dialect(frozenset({"format", "minItems"}), _FORMATS | {"uri"}, most_min_items=1)
_GEMINI = _Dialect(
    frozenset({"format", "minItems", "maxItems", "minimum", "maximum"}),
    _FORMATS,
    closed=False,
    any_value=True,
    const=False,
    enum_types=("string", "integer", "number"),
    prefix_items=True,
)


def openai_schema(schema: Schema) -> Form:
    """``{"name", "schema", "strict"}``: the inner object of Chat Completions, and flat in Responses.

    Strict if that does not change what is asked for and OpenAI's limits allow it; optional members then are required
    ones that may be null, which rules/answer.py takes out again. Else the schema as it is, for guidance.
    """
    return _made_once(_openai, schema)


def anthropic_schema(schema: Schema) -> Form:
    """What ``output_config.format.schema`` takes. Raises RowError for a schema that can not be said in it."""
    return _made_once(_anthropic, schema)


def gemini_schema(schema: Schema) -> Form:
    """What ``generationConfig.responseJsonSchema`` takes."""
    return _made_once(_gemini, schema)


def _made_once(make: Callable[[Schema], Form], schema: Schema) -> Form:
    """All rows of a run share one form: it is not to be changed. Raises RowError for what is no schema: a row's own
    (``response_format``) was not looked at before."""
    try:
        written = orjson.dumps(schema)
    except TypeError:  # an integer beyond 64 bits
        written = None
    try:
        return make(schema) if written is None else _made(make, written)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise RowError(
            "the schema of the answer is no JSON Schema, or nests too deeply: 'type' is a name or a list of names, "
            "'properties' an object of schemas, 'required', 'enum' and 'anyOf' are lists"
        ) from None


@lru_cache(maxsize=32)
def _made(make: Callable[[Schema], Form], schema: bytes) -> Form:
    return make(orjson.loads(schema))


def _openai(schema: Schema) -> Form:
    try:
        form = _Former(schema, _OPENAI).form()
    except _Unfit:
        form = None
    if form is None or not _within_limits(form):
        return {"name": NAME, "schema": _as_it_is(schema), "strict": False}
    return {"name": NAME, "schema": form, "strict": True}


def _anthropic(schema: Schema) -> Form:
    try:
        return _Former(schema, _ANTHROPIC).form()
    except _Unfit as unfit:
        raise RowError(f"--schema can not be sent to this API: {unfit}") from None


def _gemini(schema: Schema) -> Form:
    former = _Former(schema, _GEMINI)
    form = former.form()
    former.free_recursion()
    return form


def chat_fields(
    messages: Sequence[Mapping[str, Any]], schema: Schema, mode: Literal["json_schema", "json_object", "none"]
) -> dict[str, Any]:
    """The fields of a Chat Completions body that ask for ``schema``, as far as the server can hold the model to it."""
    if mode == "json_schema":
        return {"response_format": {"type": "json_schema", "json_schema": openai_schema(schema)}}
    told = {"messages": instructed(messages, schema)}
    return told if mode == "none" else {**told, "response_format": {"type": "json_object"}}


def instructed(messages: Sequence[Mapping[str, Any]], schema: Schema) -> list[Mapping[str, Any]]:
    """``messages`` with the schema in the system message, for servers that can not hold the model to one.

    DeepSeek and OpenAI want the word JSON in the conversation for their ``json_object``.
    """
    written = orjson.dumps(_made_once(_as_it_is, schema)).decode()
    wish = f"Answer with JSON and nothing else, one value that fits this JSON Schema:\n{written}"
    for index, message in enumerate(messages):
        if message.get("role") in ("system", "developer"):
            content = message.get("content") or ""
            parts = isinstance(content, list)
            said = [*content, {"type": "text", "text": wish}] if parts else f"{content}\n\n{wish}".lstrip()
            return [*messages[:index], {**message, "content": said}, *messages[index + 1 :]]
    return [{"role": "system", "content": wish}, *messages]


class _Unfit(Exception):
    """A schema asks for what a dialect has no form for; the text says where and what."""


@dataclass(slots=True)
class _Former:
    """Makes the form of one schema in one dialect. ``defs`` grows by what is referred to."""

    root: Schema
    dialect: _Dialect
    defs: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    merging: int = 0

    def form(self) -> dict[str, Any]:
        """The whole form."""
        form = self._node(root_of(self.root), "$")
        if not is_object(self.root) or form.get("type") != "object":
            form = _wrapped(form)
        if self.defs:
            form["$defs"] = self.defs
        return form

    def free_recursion(self) -> None:
        """Gemini takes recursion in optional members only."""
        uses = {name: set(_names_in(form)) for name, form in self.defs.items()}
        reach = {name: _reachable(name, uses) for name in uses}
        for name, form in self.defs.items():
            if name in reach[name]:
                for node in _nodes(form):
                    _free(node, {other for other in reach[name] if name in reach[other]})

    def _node(self, schema: Any, place: str) -> dict[str, Any]:
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            return self._any(place, "it allows no value at all")
        if "$ref" in schema:
            return self._reference(schema, place)
        if "allOf" in schema:
            return self._all_of(schema, place)
        for union in _UNIONS:
            if union in schema and not schema.keys() & (_STRUCTURE - {union, "type"}):
                return self._union(schema, union, place)
        if "enum" in schema or "const" in schema:
            return self._values(schema, place)
        return self._typed(schema, place)

    def _any(self, place: str, why: str) -> dict[str, Any]:
        if self.dialect.any_value:
            return {}
        raise _Unfit(f"at {excerpt(place)} {why}")

    def _reference(self, schema: Schema, place: str) -> dict[str, Any]:
        beside = {name: value for name, value in schema.items() if name not in ("$ref", "$defs", "definitions")}
        target = resolved(self.root, schema["$ref"])
        if target is None:
            return self._any(place, f"the reference {excerpt(str(schema['$ref']), 60)!r} is no path in the schema")
        if beside.keys() & (_STRUCTURE - {"type"}):
            rest = {name: value for name, value in beside.items() if name != "allOf"}
            return self._all_of({"allOf": [{"$ref": schema["$ref"]}, rest, *beside.get("allOf", ())]}, place)
        form = {"$ref": f"#/$defs/{self._name(schema['$ref'], target)}"}
        # A reference may have no siblings; a union of one may.
        about = _about(beside, _bound(beside))
        return {"anyOf": [form], **about} if about else form

    def _name(self, reference: str, target: Any) -> str:
        """The name under which the form of ``target`` stands in ``defs``."""
        if reference not in self.names:
            wanted = re.sub(r"[^A-Za-z0-9_-]+", "_", reference.rpartition("/")[2].strip("#")) or "root"
            name, number = wanted, 1
            while name in self.defs:
                number += 1
                name = f"{wanted}_{number}"
            self.names[reference] = name
            self.defs[name] = {}  # taken, before what it refers to itself
            self.defs[name] = self._node(target, reference)
        return self.names[reference]

    def _all_of(self, schema: Schema, place: str) -> dict[str, Any]:
        rest = {name: value for name, value in schema.items() if name != "allOf"}
        members = [one for one in schema["allOf"] if one is not True]
        if len(members) == 1 and not rest.keys() & _STRUCTURE:
            only = members[0]
            if isinstance(only, Mapping) and not only.keys() & rest.keys():
                return self._node({**only, **rest}, place)
        merged = rest
        for member in members:
            one = merged_with(merged, self._behind(member))
            if one is None:
                return {**self._any(place, "the parts of allOf can not be made one"), **_about(schema, ("allOf",))}
            merged = one
        if self.merging == _MOST_MERGES:
            return self._any(place, "allOf comes back to itself")
        self.merging += 1
        form = self._node(merged, place)
        self.merging -= 1
        return form

    def _behind(self, member: Any) -> Any:
        """What stands behind references, to be merged with others."""
        for _ in range(10):
            if not isinstance(member, Mapping) or set(member) != {"$ref"}:
                return member
            member = resolved(self.root, member["$ref"])
        return None

    def _union(self, schema: Schema, union: str, place: str) -> dict[str, Any]:
        other = [name for name in _UNIONS if name != union and name in schema]
        shared = {"type": schema["type"]} if "type" in schema else {}
        branches = [
            self._node({**shared, **one} if isinstance(one, Mapping) and "$ref" not in one else one, f"{place}.{union}")
            for one in schema[union]
        ]
        return {"anyOf": _distinct(branches), **_about(schema, (*other, *_bound(schema)))}

    def _values(self, schema: Schema, place: str) -> dict[str, Any]:
        """One of some values; those of each type apart."""
        given = [schema["const"]] if "const" in schema else list(schema["enum"])
        types = _types(schema)
        by_type: dict[str, list[Any]] = {}
        for value in given:
            kind = _type_of(value)
            if types and kind not in types and not (kind == "integer" and "number" in types):
                continue  # the schema itself forbids it
            by_type.setdefault(kind, []).append(value)
        if not by_type or by_type.keys() & {"object", "array"}:
            return {
                **self._any(place, "values that are objects or arrays can not be listed"),
                **_about(schema, ("enum", "const")),
            }
        branches = [self._values_of(kind, values, is_const="const" in schema) for kind, values in by_type.items()]
        about = _about(schema, (*_UNIONS, *_bound(schema)))
        if len(branches) == 1:
            return _joined(branches[0], about)
        return {"anyOf": branches, **about}

    def _values_of(self, kind: str, values: list[Any], *, is_const: bool) -> dict[str, Any]:
        if kind == "null":
            return {"type": "null"}
        if kind not in self.dialect.enum_types:
            return {"type": kind, **_about({"enum": values}, ("enum",) if len(values) == 1 else ())}
        if is_const and self.dialect.const:
            return {"type": kind, "const": values[0]}
        return {"type": kind, "enum": _distinct(values)}

    def _typed(self, schema: Schema, place: str) -> dict[str, Any]:
        types = _types(schema)
        if not types:
            return {**self._any(place, "no type is given: add one"), **_about(schema, (*_UNIONS, *_bound(schema)))}
        if len(types) == 1:
            return _joined(self._of(types[0], schema, place), _about(schema, _UNIONS))
        return {"anyOf": [self._of(kind, schema, place) for kind in types], **_about(schema, _UNIONS)}

    def _of(self, kind: str, schema: Schema, place: str) -> dict[str, Any]:
        """What ``schema`` says of values of one type."""
        if any("properties" in one or "$ref" in one or "items" in one for one in _branches(schema)):
            self._any(place, "members are told both beside and inside of anyOf or oneOf")
        if kind == "object":
            return self._object(schema, place)
        if kind == "array":
            return self._array(schema, place)
        form: dict[str, Any] = {"type": kind}
        told = []
        for name in sorted(schema.keys() & _KINDS.get(kind, frozenset())):
            if self._keeps(name, schema[name]):
                form[name] = schema[name]
            else:
                told.append(name)
        return {**form, **_about(schema, told, annotations=False)}

    def _keeps(self, name: str, value: Any) -> bool:
        if name not in self.dialect.keeps:
            return False
        if name == "format":
            return value in self.dialect.formats
        if name == "pattern":  # no groups that look around
            return self.dialect.patterns and "(?" not in value
        if name == "minItems":
            return self.dialect.most_min_items is None or bool(value <= self.dialect.most_min_items)
        return True

    def _object(self, schema: Schema, place: str) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = [name for name in schema.get("required", ()) if name in properties]
        more = schema.get("additionalProperties")
        form: dict[str, Any] = {"type": "object"}
        told: list[str] = []
        if "patternProperties" in schema:
            self._any(place, "names of members are given by patterns: list them in properties")
            told.append("patternProperties")
        if self.dialect.closed:
            if more not in (None, False) or (more is None and not properties):
                raise _Unfit(f"at {excerpt(place)} an object may have members of any name: list them in properties")
            if len(required) != len(set(schema.get("required", ()))):
                raise _Unfit(f"at {excerpt(place)} a required member does not stand in properties")
        elif isinstance(more, Mapping):
            form["additionalProperties"] = self._node(more, f"{place}.*")
        elif isinstance(more, bool):
            form["additionalProperties"] = more
        members = {}
        for name, inner in properties.items():
            if inner is False:
                continue
            member = self._node(inner, f"{place}.{name}")
            optional = self.dialect.all_required and name not in required
            members[name] = _nullable(member) if optional else member
        if members or self.dialect.closed:
            form["properties"] = members
        wanted = list(members) if self.dialect.all_required else [name for name in required if name in members]
        if self.dialect.closed or wanted:
            form["required"] = wanted
        if self.dialect.closed:
            form["additionalProperties"] = False
        elif not self.dialect.closed and len(required) != len(schema.get("required", ())):
            told.append("required")
        return {**form, **_about(schema, told, annotations=False)}

    def _array(self, schema: Schema, place: str) -> dict[str, Any]:
        form: dict[str, Any] = {"type": "array"}
        told = [name for name in ("minItems", "maxItems") if name in schema]
        for name in list(told):
            if self._keeps(name, schema[name]):
                form[name] = schema[name]
                told.remove(name)
        items, first = schema.get("items"), schema.get("prefixItems")
        if isinstance(items, list):  # as it was written until 2019-09
            items, first = schema.get("additionalItems"), items
        if first:
            self._tuple(form, first, items, schema, place)
        elif isinstance(items, Mapping):
            form["items"] = self._node(items, f"{place}[]")
        elif not self.dialect.array_without_items:
            raise _Unfit(f"at {excerpt(place)} the items of an array are not told: add items")
        return {**form, **_about(schema, told, annotations=False)}

    def _tuple(self, form: dict[str, Any], first: Sequence[Any], items: Any, schema: Schema, place: str) -> None:
        """Items that differ by their place; where that can not be said, each may be any of them."""
        forms = [self._node(one, f"{place}[{index}]") for index, one in enumerate(first)]
        rest = self._node(items, f"{place}[]") if isinstance(items, Mapping) else None
        if self.dialect.prefix_items:
            form["prefixItems"] = forms
            if rest is not None:
                form["items"] = rest
            return
        if rest is None and items is not False and schema.get("maxItems", len(first) + 1) > len(first):
            raise _Unfit(f"at {excerpt(place)} an array may go on with any items: add items or maxItems")
        kinds = _distinct(forms if rest is None else [*forms, rest])
        form["items"] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def merged_with(one: Schema, other: Any) -> dict[str, Any] | None:
    """The schema of what fits both; None if that is not plain to see."""
    if not isinstance(other, Mapping):
        return None
    merged = dict(one)
    for name, value in other.items():
        if name not in merged or merged[name] == value or name in ("title", "description"):
            merged.setdefault(name, value)
        elif name == "properties" and all(merged[name].get(key, inner) == inner for key, inner in value.items()):
            merged[name] = {**merged[name], **value}
        elif name == "required":
            merged[name] = [*merged[name], *(key for key in value if key not in merged[name])]
        else:
            return None
    return merged


def _wrapped(form: Schema) -> dict[str, Any]:
    return {"type": "object", "properties": {WRAP: form}, "required": [WRAP], "additionalProperties": False}


def _as_it_is(schema: Schema) -> dict[str, Any]:
    """The schema itself, with an object at its root."""
    root = root_of(schema)
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    if is_object(schema):
        return dict(schema) if root is schema else {**root, **shared}
    inner = {name: value for name, value in schema.items() if name not in ("$defs", "definitions", "$schema")}
    return {**_wrapped(_moved(inner)), **_moved(shared)}


def _moved(value: Any) -> Any:
    """References as they are once the schema stands in the wrapping; the definitions stay at the root."""
    if isinstance(value, Mapping):
        return {name: _moved_reference(inner) if name == "$ref" else _moved(inner) for name, inner in value.items()}
    return [_moved(inner) for inner in value] if isinstance(value, list) else value


def _moved_reference(reference: Any) -> Any:
    if not isinstance(reference, str) or reference.startswith(("#/$defs/", "#/definitions/")):
        return _moved(reference)
    return f"#/properties/{WRAP}{reference[1:]}" if reference == "#" or reference.startswith("#/") else reference


def _types(schema: Schema) -> list[str]:
    """The types that are said, or that the members of an object or array show."""
    said = schema.get("type")
    if said is not None:
        return [said] if isinstance(said, str) else _distinct(list(said))
    if schema.keys() & {"enum", "const"}:
        return []
    if "properties" in schema:
        return ["object"]
    return ["array"] if schema.keys() & {"items", "prefixItems"} else []


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    kinds: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return kinds.get(type(value), "object")


def _branches(schema: Schema) -> Iterator[Schema]:
    for union in _UNIONS:
        yield from (one for one in schema.get(union, ()) if isinstance(one, Mapping))


def _bound(schema: Schema) -> list[str]:
    """The constraints in ``schema`` that belong to one type."""
    return sorted(schema.keys() & _BOUND_TO_A_KIND)


def _about(schema: Schema, told: Sequence[str], *, annotations: bool = True) -> dict[str, Any]:
    """Title and description, the constraints named by ``told`` among it in words."""
    names = [*told, *(_TOLD if annotations else ())]
    said = [f"{name}: {_short(schema[name])}" for name in names if name in schema]
    about: dict[str, Any] = {}
    if annotations and isinstance(schema.get("title"), str):
        about["title"] = schema["title"]
    own = schema.get("description") if annotations else None
    words = [own] if isinstance(own, str) and own else []
    if said:
        words.append(f"({'; '.join(said)})")
    if words:
        about["description"] = " ".join(words)
    return about


def _joined(form: dict[str, Any], about: Schema) -> dict[str, Any]:
    """``form`` with ``about``; where both have a description, one after the other."""
    words = [one["description"] for one in (about, form) if "description" in one]
    return {**form, **about, **({"description": " ".join(words)} if words else {})}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _TOLD_CHARS else text[: _TOLD_CHARS - 1] + "…"


def _nullable(form: dict[str, Any]) -> dict[str, Any]:
    if form == {"type": "null"} or {"type": "null"} in form.get("anyOf", ()):
        return form
    if "anyOf" in form:
        return {**form, "anyOf": [*form["anyOf"], {"type": "null"}]}
    return {"anyOf": [form, {"type": "null"}]}


def _distinct(values: list[Any]) -> list[Any]:
    """In their order; true is not 1."""
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())


def _nodes(form: Any) -> Iterator[dict[str, Any]]:
    """A form and all forms inside it."""
    if not isinstance(form, dict):
        return
    yield form
    for name in ("items", "additionalProperties"):
        yield from _nodes(form.get(name))
    for name in ("anyOf", "prefixItems"):
        for inner in form.get(name, ()):
            yield from _nodes(inner)
    for name in ("properties", "$defs"):
        for inner in form.get(name, {}).values():
            yield from _nodes(inner)


def _names_in(form: Any) -> Iterator[str]:
    return (node["$ref"].removeprefix("#/$defs/") for node in _nodes(form) if "$ref" in node)


def _reachable(start: str, uses: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(uses[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(uses[name])
    return found


def _free(node: dict[str, Any], circle: set[str]) -> None:
    """Require no member that comes back to ``circle``."""
    if "required" in node:
        node["required"] = [name for name in node["required"] if not circle & set(_names_in(node["properties"][name]))]


def _within_limits(form: Schema) -> bool:
    properties = values = chars = 0
    for node in _nodes(form):
        names = [*node.get("properties", {}), *node.get("$defs", {})]
        properties += len(node.get("properties", {}))
        listed = [*node.get("enum", ()), *([node["const"]] if "const" in node else ())]
        values += len(listed)
        texts = sum(len(str(value)) for value in listed)
        if len(listed) > _MANY_VALUES and texts > _MANY_VALUES_CHARS:
            return False
        chars += texts + sum(map(len, names))
    levels = _levels(form, form.get("$defs", {}), {})
    return properties <= _MOST_PROPERTIES and values <= _MOST_VALUES and chars <= _MOST_CHARS and levels <= _MOST_LEVELS


def _levels(form: Schema, defs: Mapping[str, Any], known: dict[str, int]) -> int:
    """How many objects and arrays stand inside each other; what refers to itself counts once."""
    if "$ref" in form:
        name = form["$ref"].removeprefix("#/$defs/")
        if name not in known:
            known[name] = 0
            known[name] = _levels(defs[name], defs, known)
        return known[name]
    inner = [*form.get("anyOf", ()), *form.get("properties", {}).values(), *form.get("prefixItems", ())]
    inner += [form["items"]] if "items" in form else []
    deepest = max((_levels(one, defs, known) for one in inner), default=0)
    return deepest + (form.get("type") in ("object", "array"))
