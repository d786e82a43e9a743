"""The fields of a JSON body, checked strictly against a table; each vendor has its own words for what is wrong."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from llmbatch.sim.problems import ApiError


@dataclass(frozen=True, slots=True)
class Field:
    """What a field may hold; ``words`` say it."""

    words: str
    types: tuple[type, ...]
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


STRING = Field("a string", (str,))
BOOLEAN = Field("a boolean", (bool,))
OBJECT = Field("an object", (dict,))
ARRAY = Field("an array", (list,))
STRING_OR_ARRAY = Field("a string or an array", (str, list))
STRING_OR_OBJECT = Field("a string or an object", (str, dict))


def integer(low: float = -math.inf, high: float = math.inf) -> Field:
    return Field("an integer", (int,), low, high)


def number(low: float = -math.inf, high: float = math.inf) -> Field:
    return Field("a number", (int, float), low, high)


def choice(*choices: str) -> Field:
    return Field("a string", (str,), choices=choices)


class Words(Protocol):
    """How a vendor says what is wrong with a field. The names are whole: ``messages[0].role``."""

    def missing(self, name: str) -> ApiError: ...
    def unknown(self, name: str) -> ApiError: ...
    def wrong_type(self, name: str, wanted: str, value: Any) -> ApiError: ...
    def out_of_range(self, name: str, field: Field, value: float) -> ApiError: ...
    def not_a_choice(self, name: str, field: Field, value: str) -> ApiError: ...


def check_fields(
    given: Any, table: Mapping[str, Field], words: Words, where: str = "", required: Collection[str] = ()
) -> None:
    """ApiError for the first field of the object ``given`` that ``table`` does not allow.

    ``where`` is its place in the body. An optional field that is null counts as not given.
    """
    if not isinstance(given, dict):
        raise words.wrong_type(where, "an object", given)
    prefix = f"{where}." if where else ""
    for name in required:
        if name not in given:
            raise words.missing(prefix + name)
    for name, value in given.items():
        field = table.get(name)
        if field is None:
            raise words.unknown(prefix + name)
        if value is not None or name in required:
            _check_value(prefix + name, field, value, words)


def _check_value(name: str, field: Field, value: Any, words: Words) -> None:
    if type(value) not in field.types:
        raise words.wrong_type(name, field.words, value)
    if field.choices and value not in field.choices:
        raise words.not_a_choice(name, field, value)
    if type(value) in (int, float) and not field.low <= value <= field.high:
        raise words.out_of_range(name, field, value)


def kind_of(given: Any, words: Words, where: str, name: str = "type") -> str:
    """The field that says what kind of object ``given`` is."""
    if not isinstance(given, dict):
        raise words.wrong_type(where, "an object", given)
    kind = given.get(name)
    if kind is None:
        raise words.missing(f"{where}.{name}")
    if not isinstance(kind, str):
        raise words.wrong_type(f"{where}.{name}", "a string", kind)
    return kind


def json_type(value: Any) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a decimal number", str: "a string", list: "an array"}
    return "null" if value is None else names.get(type(value), "an object")
