"""From the text of an answer to the JSON that was asked for: read, held against the schema, and asked for once more.

Servers that constrain the model give bare JSON. Others wrap it in a code fence or in words: then the one value in the
text that fits is taken. Two different ones that fit are none: nobody knows which is meant.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol
from urllib.parse import unquote

from llmbatch.records import Reply, Usage
from llmbatch.rules.nesting import MAX_NESTING, nests_too_deeply
from llmbatch.rules.reasons import excerpt

# The type of the failure of a row that no answer fits: known to be paid for.
MISMATCH = "schema_mismatch"
# Where the root of a schema is no object, providers are sent one with this only member.
WRAP = "answer"
# Of a bad answer in the conversation that asks again. It is paid for as input.
REPEATED_CHARS = 20_000
# A text of brackets must not be read from each of them to its end.
# References followed to see whether null fits; schemas that refer on and on are rare, circles common.
_MOST_REFERENCES = 20
_MOST_STARTS = 200
_FENCE = re.compile(r"```[\w+-]*[ \t]*\r?\n(.*?)```", re.DOTALL)
_START = re.compile(r"[{\[]")
_THOUGHT = "</think>"

# How an answer ended that asking for again would not mend.
_IN_VAIN = {
    "length": "the answer was cut at its token limit: raise max_tokens",
    "context_length": "the answer was cut where the model's context ended: shorten the prompt",
    "content_filter": "the model refused, or the provider's filter cut the answer",
    "tool_calls": "the model called a tool instead of giving an answer: set tool_choice to none",
    "paused": "the model paused before its answer was complete",
}


class Misfit(Exception):
    """An answer that does not fit. ``problems`` say why, one place each; ``again``: asking once more may help."""

    def __init__(self, *problems: str, again: bool = True) -> None:
        super().__init__(problems[0])
        self.problems = problems
        self.again = again


class Fits(Protocol):
    """What rules/schema.py gives."""

    @property
    def schema(self) -> Mapping[str, Any]: ...

    def problems(self, value: Any) -> list[str]:
        """Why ``value`` does not fit; empty if it does."""
        ...


def fitted(reply: Reply, check: Fits) -> Any:
    """The JSON value of a good answer. Raises Misfit."""
    ended = reply.finish_reason or ""
    if ended in _IN_VAIN:
        raise Misfit(_IN_VAIN[ended], again=False)
    text = reply.output
    if not isinstance(text, str):
        raise Misfit("the answer is no text", again=False)
    if not text.strip():
        raise Misfit("the answer is empty")
    try:
        value = loads(text)
    except ValueError as error:
        return _found(text, check, f"it is no JSON: {excerpt(str(error))}")
    return _fitting(value, check)


def loads(text: str) -> Any:
    """Strict JSON; every number stays what it is. Raises ValueError."""
    try:
        return _writable(_DECODER.decode(text), text)
    except RecursionError:
        raise ValueError(f"it nests deeper than {MAX_NESTING} levels") from None


def is_object(schema: Mapping[str, Any]) -> bool:
    """Whether every value that fits is an object, at a glance; else providers are sent it wrapped."""
    node = root_of(schema)
    if "properties" in node:
        return bool(node.get("type", "object") == "object")
    return node.get("type") == "object" and not node.keys() & {"anyOf", "oneOf"}


def root_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The root itself where it is a mere reference (as Pydantic writes recursive models)."""
    node = schema
    for _ in range(10):
        reference = node.get("$ref")
        if not isinstance(reference, str) or node.keys() & {"type", "properties", "anyOf", "oneOf", "allOf", "enum"}:
            break
        target = resolved(schema, reference)
        if not isinstance(target, Mapping):
            break
        node = target
    return node


def resolved(schema: Any, reference: str) -> Any:
    """What a JSON pointer such as ``#/$defs/NAME`` points to (RFC 6901); None if there is nothing, or no pointer."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    node = schema
    for step in reference.split("/")[1:]:
        step = _unescaped(step)
        if isinstance(node, Mapping) and step in node:
            node = node[step]
        elif isinstance(node, list) and step.isdecimal() and int(step) < len(node):
            node = node[int(step)]
        else:
            return None
    return node


def follow_up(messages: Sequence[Mapping[str, Any]], answer: str, problems: Sequence[str]) -> list[Mapping[str, Any]]:
    """The conversation that asks once more: the answer, and what is wrong with it."""
    said = "\n".join(f"- {problem}" for problem in problems)
    asked = {
        "role": "user",
        "content": f"That answer does not fit the JSON Schema:\n{said}\n"
        "Answer again, with the whole corrected JSON and nothing else.",
    }
    given = [{"role": "assistant", "content": answer[:REPEATED_CHARS]}] if answer.strip() else []
    return [*messages, *given, asked]


def added(one: Usage, other: Usage) -> Usage:
    """The sum of what two answers used; known where one of them is known."""
    return Usage(
        input_tokens=_sum(one.input_tokens, other.input_tokens),
        output_tokens=_sum(one.output_tokens, other.output_tokens),
        cached_input_tokens=_sum(one.cached_input_tokens, other.cached_input_tokens),
        reasoning_tokens=_sum(one.reasoning_tokens, other.reasoning_tokens),
        cache_write_tokens=_sum(one.cache_write_tokens, other.cache_write_tokens),
        media=_both(one.media, other.media),
    )


def _both(one: Mapping[str, int] | None, other: Mapping[str, int] | None) -> dict[str, int] | None:
    if one is None or other is None:
        return None
    return {kind: one.get(kind, 0) + other.get(kind, 0) for kind in one.keys() | other.keys()}


def without_added_nulls(value: Any, schema: Any, root: Any) -> Any:
    """``value`` without the nulls that stand for optional properties: what is sent to OpenAI makes them required.

    A null goes only where the ``schema`` (of this place, in the document ``root``) knows the property as optional and
    takes no null for it.
    """
    places = list(_alternatives(schema, root, value))
    if isinstance(value, list):
        items = [place["items"] for place in places if isinstance(place.get("items"), dict)]
        return [without_added_nulls(member, {"anyOf": items}, root) for member in value] if items else value
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, member in value.items():
        told = [place for place in places if name in _named(place)]
        if member is None and told and not any(_takes_null(place, name, root) for place in told):
            continue
        inner = [_named(place)[name] for place in told]
        free = [place.get("additionalProperties") for place in places]
        kept[name] = without_added_nulls(member, {"anyOf": inner or free}, root)
    return kept


def _named(place: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = place.get("properties")
    return properties if isinstance(properties, dict) else {}


def _takes_null(place: Mapping[str, Any], name: str, root: Any) -> bool:
    return name in place.get("required", ()) or _is_null_valid(_named(place)[name], root, _MOST_REFERENCES)


def _is_null_valid(schema: Any, root: Any, references: int) -> bool:
    """Whether null fits ``schema``; of references that go in a circle, whether the rest of it takes null."""
    if not isinstance(schema, Mapping):
        return schema is not False
    kinds = schema.get("type", "null")
    if "null" not in (kinds if isinstance(kinds, list) else [kinds]):
        return False
    if None not in schema.get("enum", [None]) or schema.get("const") is not None:
        return False
    reference = schema.get("$ref")
    if (
        isinstance(reference, str)
        and references
        and not _is_null_valid(resolved(root, reference), root, references - 1)
    ):
        return False
    if not all(_is_null_valid(one, root, references) for one in schema.get("allOf", ())):
        return False
    unions = (schema[name] for name in ("anyOf", "oneOf") if schema.get(name))
    return all(any(_is_null_valid(one, root, references) for one in union) for union in unions)


def _alternatives(schema: Any, root: Any, value: Any) -> Iterator[Mapping[str, Any]]:
    """The schemas that may hold for ``value`` here: behind references, in unions and in intersections."""
    waiting, seen = [schema], 0
    while waiting and seen < _MOST_STARTS:
        seen += 1
        node = waiting.pop()
        if not isinstance(node, Mapping):
            continue
        if not _may_be(node, value):
            continue
        parts = [one for name in ("anyOf", "oneOf", "allOf") for one in node.get(name, ())]
        reference = node.get("$ref")
        if isinstance(reference, str):
            parts.append(resolved(root, reference))
        waiting.extend(parts)
        if not parts or node.keys() & {"type", "properties", "items", "enum", "const"}:
            yield node


def _may_be(node: Mapping[str, Any], value: Any) -> bool:
    """Whether the fixed members of an object (its ``kind``) allow this branch of a union."""
    if not isinstance(value, dict):
        return True
    for name, inner in _named(node).items():
        if isinstance(inner, dict) and value.get(name) is not None:
            if "const" in inner and inner["const"] != value[name]:
                return False
            if "enum" in inner and value[name] not in inner["enum"]:
                return False
    return True


def _fitting(value: Any, check: Fits) -> Any:
    """``value`` as the schema wants it: without the wrapping, and without nulls that say "not there"."""
    candidates = [value]
    if isinstance(value, dict) and value.keys() == {WRAP}:
        candidates.insert(is_object(check.schema), value[WRAP])
    for candidate in candidates:
        if not check.problems(candidate):
            return candidate
        pruned = without_added_nulls(candidate, check.schema, check.schema)
        if pruned != candidate and not check.problems(pruned):
            return pruned
    raise Misfit(*check.problems(candidates[0]))


def _found(text: str, check: Fits, why: str) -> Any:
    """The one value inside ``text`` that fits."""
    fits: list[Any] = []
    misfit = Misfit(why)
    for value in _inside(text):
        try:
            fit = _fitting(value, check)
        except Misfit as error:
            misfit = error
        else:
            if not any(_same(fit, other) for other in fits):
                fits.append(fit)
    if len(fits) > 1:
        raise Misfit(f"the text holds {len(fits)} different values that fit; give one")
    if not fits:
        raise misfit
    return fits[0]


def _inside(text: str) -> Iterator[Any]:
    """The values in code fences, else the objects and arrays between other words, from the left."""
    if _THOUGHT in text:
        text = text.rpartition(_THOUGHT)[2]
    fenced = []
    for block in _FENCE.findall(text):
        try:
            fenced.append(loads(block))
        except ValueError:
            continue
    try:
        yield loads(text)
    except ValueError:
        yield from fenced or _balanced(text)


def _balanced(text: str) -> Iterator[Any]:
    at, starts, scanned = 0, 0, 0
    while (start := _START.search(text, at)) and starts < _MOST_STARTS and scanned <= 2 * len(text):
        starts += 1
        try:
            value, at = _DECODER.raw_decode(text, start.start())
            yield _writable(value, text[start.start() : at])
        except json.JSONDecodeError as error:
            scanned += error.pos - start.start()
            at = start.end()
        except (ValueError, RecursionError):
            return


def _writable(value: Any, text: str) -> Any:
    """``value``, which was read from ``text``, if all of it can be written again. Raises ValueError."""
    if nests_too_deeply(value, text.encode("utf-8", "surrogatepass")):
        raise ValueError(f"it nests deeper than {MAX_NESTING} levels")
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half of a surrogate pair, which is no character") from None
    return value


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {excerpt(digits, 40)} is beyond 64 bits")
    return value


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_number, parse_constant=_no_number)


def _unescaped(step: str) -> str:
    return unquote(step).replace("~1", "/").replace("~0", "~")


def _same(one: Any, other: Any) -> bool:
    """As JSON: true is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else one + other
