"""The JSON Schema that every answer of a run must fit: is it one, and does a value fit it?

jsonschema-rs does the work: one wheel without dependencies, two microseconds for a small answer, and patterns of the
schema can not run away on a hostile answer. Formats are checked as the drafts say: not at all since 2019-09.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import jsonschema_rs

from llmbatch.errors import OptionsError
from llmbatch.rules.nesting import MAX_NESTING
from llmbatch.rules.reasons import excerpt

# It goes out with every request. OpenAI takes 120,000 characters of names and values (reference, "Structured Outputs").
MAX_SCHEMA_BYTES = 2**18
MAX_PROBLEMS = 5
_PROBLEM_CHARS = 300
_TOO_LARGE = f"it has more than {MAX_SCHEMA_BYTES:,} bytes, and would go out with every request"
# What drafts 4 to 2020-12 give a meaning to, or a reader. A root without any of them lets everything pass.
_WORD = re.compile(
    r"\$\w+|id|title|description|default|examples|deprecated|readOnly|writeOnly|type|enum|const|allOf|anyOf|oneOf|not"
    r"|if|then|else|required|format|pattern|uniqueItems|multipleOf|definitions|depend\w+"
    r"|\w*(Properties|properties|Items|items|Contains|contains|Length|propertyNames)"
    r"|minimum|maximum|exclusiveM\w+|content\w+"
)


class AnswerSchema:
    """The ``schema`` itself, and the check by it. Raises OptionsError for what is none; ``where`` is its place."""

    def __init__(self, schema: Mapping[str, Any], where: str = "schema") -> None:
        try:
            self.schema = _plain(schema)
        except ValueError as error:
            raise OptionsError(f"{where}: {error}") from None
        if problem := _no_words(self.schema):
            raise OptionsError(f"{where}: {problem}")
        for place, reference in _references(self.schema):
            if not reference.startswith("#"):
                raise OptionsError(
                    f"{where}: {place} refers to {excerpt(reference, 80)!r}; only what stands in the schema itself "
                    'can be referred to, such as "#/$defs/NAME": put it there'
                )
        try:
            self._validator = jsonschema_rs.validator_for(self.schema, offline=True)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
            place = json_path(getattr(error, "instance_path", ()))
            said = excerpt(getattr(error, "message", str(error)), _PROBLEM_CHARS)
            raise OptionsError(f"{where}: it is no valid JSON Schema: {place}: {said}") from None

    def problems(self, value: Any) -> list[str]:
        """Why ``value`` does not fit: a path and a reason each, at most MAX_PROBLEMS. Empty if it fits."""
        if self._validator.is_valid(value):
            return []
        found = islice(self._validator.iter_errors(value), MAX_PROBLEMS)
        return [f"{json_path(one.instance_path)}: {excerpt(one.message, _PROBLEM_CHARS)}" for one in found]


def schema_of(text: bytes, where: str) -> dict[str, Any]:
    """The schema that stands in a file. Raises OptionsError."""
    if len(text) > MAX_SCHEMA_BYTES:
        raise OptionsError(f"{where}: {_TOO_LARGE}")
    try:
        schema = json.loads(text.decode("utf-8-sig"))
    except RecursionError:
        raise OptionsError(f"{where}: it is no JSON that can be read: it nests too deeply") from None
    except ValueError as error:
        raise OptionsError(f"{where}: it is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise OptionsError(f'{where}: it is no JSON object, such as {{"type": "object", "properties": {{…}}}}')
    return AnswerSchema(schema, where).schema


def _no_words(schema: Mapping[str, Any]) -> str | None:
    """What is wrong with what says nothing: an example, or a schema in the wrapping of a request to OpenAI."""
    if "json_schema" in schema or (isinstance(schema.get("schema"), Mapping) and "name" in schema):
        return 'it is wrapped as in a request to OpenAI: keep only what stands under "schema"'
    if schema and not any(map(_WORD.fullmatch, schema)):
        return (
            "nothing in it is a word of JSON Schema, so any answer would fit: is it an example? "
            'a schema is such as {"type": "object", "properties": {…}}'
        )
    return None


def json_path(path: Any) -> str:
    """``["a", 0, "b c"]`` -> ``$.a[0]["b c"]``."""
    steps = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" if step.isidentifier() else f"[{json.dumps(step)}]"
        for step in path
    )
    return excerpt(f"${steps}")


def _plain(schema: Any) -> dict[str, Any]:
    """As JSON has it: what comes from Python may hold tuples, or what no JSON can. Raises ValueError."""
    try:
        text = json.dumps(schema if isinstance(schema, dict) else dict(schema), allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it can not be written as JSON: {error}") from None
    if size > MAX_SCHEMA_BYTES:
        raise ValueError(_TOO_LARGE)
    plain: dict[str, Any] = json.loads(text)
    if _depth(plain) > MAX_NESTING:
        raise ValueError(f"it nests deeper than {MAX_NESTING} levels")
    return plain


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return depth


def _references(value: Any, place: str = "$") -> Iterator[tuple[str, str]]:
    """All references, and where they stand."""
    if isinstance(value, dict):
        for name, member in value.items():
            if name in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(member, str):
                yield excerpt(place), member
            elif name not in ("enum", "const", "default", "examples"):
                yield from _references(member, f"{place}.{name}")
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _references(member, f"{place}[{index}]")
