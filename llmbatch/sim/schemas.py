"""JSON Schemas: a value that fits one, and what a vendor's structured output does not take."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Below this many levels a schema that contains itself is brought to its end.
DEEP = 8

_FORMATS = {
    "date-time": "2026-01-02T03:04:05Z",
    "date": "2026-01-02",
    "time": "03:04:05Z",
    "duration": "P1D",
    "email": "a@example.com",
    "hostname": "example.com",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def example(schema: Any, word: str) -> Any:
    """A value that fits ``schema``: all properties, first choices, few items; its free strings are ``word``.

    ``pattern``, ``not``, ``if`` and ``uniqueItems`` are not looked at.
    """
    return _Example(schema, word).of(schema, 0)


class _Example:
    def __init__(self, root: Any, word: str) -> None:
        self._root = root
        self._word = word

    def of(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict):
            return self._word  # true allows anything
        schema = self._whole(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][0]
        for name in ("anyOf", "oneOf"):
            if schema.get(name):
                return self.of(_option(schema[name], depth), depth + 1)
        return self._typed(_type(schema, depth), schema, depth)

    def _whole(self, schema: dict[str, Any]) -> dict[str, Any]:
        """``schema`` with its reference followed and its allOf merged in."""
        seen: set[str] = set()
        while isinstance(reference := schema.get("$ref"), str) and reference not in seen:
            seen.add(reference)
            schema = {**self._target(reference), **{name: schema[name] for name in schema if name != "$ref"}}
        for part in schema.get("allOf", ()):
            schema = _merged(schema, self._whole(part))
        return schema

    def _target(self, reference: str) -> dict[str, Any]:
        place = self._root
        for name in reference.removeprefix("#").strip("/").split("/"):
            name = name.replace("~1", "/").replace("~0", "~")
            place = place.get(name, {}) if name and isinstance(place, dict) else place
        return place if isinstance(place, dict) else {}

    def _typed(self, type_: str, schema: dict[str, Any], depth: int) -> Any:
        match type_:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return _string(schema, self._word)
            case "integer":
                return int(_number(schema, 1))
            case "number":
                return _number(schema, 0.5)
            case "boolean":
                return True
        return None

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or ()
        names = [name for name in properties if depth < DEEP or name in required]
        names += [name for name in required if name not in properties]
        return {name: self.of(properties.get(name, True), depth + 1) for name in names}

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        first = schema.get("prefixItems") or []
        least = schema.get("minItems", 0 if depth >= DEEP else 1)
        count = max(len(first), min(int(least), int(schema.get("maxItems", least))))
        items = schema.get("items", True)
        return [self.of(first[i] if i < len(first) else items, depth + 1) for i in range(count)]


def _option(options: list[Any], depth: int) -> Any:
    """The first; far down the one that ends soonest, which is null or the last."""
    if depth < DEEP:
        return options[0]
    return next((o for o in options if isinstance(o, dict) and o.get("type") == "null"), options[-1])


def _type(schema: dict[str, Any], depth: int) -> str:
    types = schema.get("type")
    if isinstance(types, list) and types:
        types = "null" if depth >= DEEP and "null" in types else types[0]
    if isinstance(types, str):
        return types.lower()  # Gemini's older schemas say OBJECT
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    merged = {**other, **one}
    if "properties" in one and "properties" in other:
        merged["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        merged["required"] = [*one["required"], *other["required"]]
    return merged


def _string(schema: dict[str, Any], word: str) -> str:
    text = _FORMATS.get(schema.get("format", ""), word)
    least = int(schema.get("minLength", 0))
    if len(text) < least:
        text = (text * (least // len(text) + 1))[:least]
    return text[: int(schema.get("maxLength", len(text)))]


def _number(schema: dict[str, Any], plain: float) -> float:
    """``plain`` or what is nearest to it in the bounds."""
    step = schema.get("multipleOf") or (1 if isinstance(plain, int) else None)
    low = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    high = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    if "exclusiveMinimum" in schema and low >= schema["exclusiveMinimum"]:
        low = _between(schema["exclusiveMinimum"], step or 1, high)
    if "exclusiveMaximum" in schema and high >= schema["exclusiveMaximum"] and high != low:
        high = schema["exclusiveMaximum"] - (step or min(1, (schema["exclusiveMaximum"] - low) / 2))
    number = min(max(plain, low), high)
    return float(math.ceil(number / step) * step) if step else float(number)


def _between(low: float, step: float, high: float) -> float:
    """A number above ``low`` and not above ``high``."""
    return low + step if low + step <= high else (low + high) / 2


@dataclass(frozen=True, slots=True)
class SchemaRules:
    """What one vendor takes; ``keywords`` are the only ones allowed, or ``refused`` the ones that are not."""

    keywords: Collection[str] | None = None
    refused: Collection[str] = ()
    closed: bool = False
    all_required: bool = False
    object_root: bool = False
    most_min_items: float = math.inf
    lone_references: bool = False


ANYTHING = SchemaRules()
"""Every JSON Schema, as long as it is one."""

# The JSON types that keywords have (JSON Schema 2020-12, "Core" and "Validation").
_KEYWORD_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("properties", "$defs", "definitions"), (dict,)),
    **dict.fromkeys(("required", "enum", "anyOf", "oneOf", "allOf", "prefixItems"), (list,)),
    **dict.fromkeys(("$ref", "format", "pattern", "title", "description"), (str,)),
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength"), (int,)),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), (int, float)),
    "type": (str, list),
    "items": (dict, bool),
}
# What is answered has to have an end.
MOST_ITEMS = 1000


def complaint_about(schema: Any, rules: SchemaRules) -> str | None:
    """Why a vendor with ``rules`` would refuse ``schema``, or None."""
    if not isinstance(schema, dict):
        return "the schema must be an object."
    if malformed := next(_malformed(schema, "()"), None):
        return malformed
    if rules.object_root and (schema.get("type") != "object" or "anyOf" in schema):
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{schema.get('type')}\"'."
    return next(_complaints(schema, rules, "()"), None)


def _malformed(schema: Any, where: str) -> Iterator[str]:
    if not isinstance(schema, dict):
        if not isinstance(schema, bool):
            yield f"In context={where}, a schema must be an object or a boolean."
        return
    for keyword, value in schema.items():
        types = _KEYWORD_TYPES.get(keyword)
        if types and type(value) not in types:
            yield f"In context={where}, '{keyword}' has the wrong type."
            return
        if keyword in ("minItems", "minLength", "maxItems", "maxLength", "multipleOf") and value < 0:
            yield f"In context={where}, '{keyword}' must not be negative."
        if keyword in ("minItems", "minLength") and value > MOST_ITEMS:
            yield f"In context={where}, '{keyword}' must be at most {MOST_ITEMS}."
        if keyword == "required" and not all(isinstance(name, str) for name in value):
            yield f"In context={where}, 'required' must hold names."
        if keyword == "type" and isinstance(value, list) and not all(isinstance(name, str) for name in value):
            yield f"In context={where}, 'type' must hold names."
    for place, child in _children(schema):
        yield from _malformed(child, f"{where[:-1]}{place!r},)")


def _complaints(schema: Any, rules: SchemaRules, where: str) -> Iterator[str]:
    if not isinstance(schema, dict):
        return
    for keyword in schema:
        if keyword in rules.refused or (rules.keywords is not None and keyword not in rules.keywords):
            yield f"In context={where}, '{keyword}' is not permitted."
    if rules.lone_references and "$ref" in schema and len(schema) > 1:
        yield f"In context={where}, $ref cannot have keywords {sorted(schema.keys() - {'$ref'})}."
    if schema.get("minItems", 0) > rules.most_min_items:
        yield f"In context={where}, 'minItems' must be at most {rules.most_min_items:g}."
    if schema.get("type") == "object" or "properties" in schema:
        yield from _object_complaints(schema, rules, where)
    for place, child in _children(schema):
        yield from _complaints(child, rules, f"{where[:-1]}{place!r},)")


def _object_complaints(schema: dict[str, Any], rules: SchemaRules, where: str) -> Iterator[str]:
    if rules.closed and schema.get("additionalProperties") is not False:
        yield f"In context={where}, 'additionalProperties' is required to be supplied and to be false."
    missing = [name for name in schema.get("properties", ()) if name not in schema.get("required", ())]
    if rules.all_required and missing:
        yield (
            f"In context={where}, 'required' is required to be supplied and to be an array including every key in "
            f"properties. Missing '{missing[0]}'."
        )


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for keyword in ("properties", "$defs", "definitions"):
        if isinstance(schema.get(keyword), dict):
            yield from schema[keyword].items()
    for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(schema.get(keyword), list):
            yield from ((f"{keyword}[{index}]", child) for index, child in enumerate(schema[keyword]))
    if "items" in schema:
        yield "items", schema["items"]
