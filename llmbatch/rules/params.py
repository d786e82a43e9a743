"""Parameters a row may set: the known ones with their types and ranges, and the names no row may use.

Names and ranges: OpenAI API reference, "Create chat completion"; upper limits that differ between providers
are left to them.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from llmbatch.rules.reasons import RowError, excerpt, kind_of

Check = Callable[[Any], bool]

# More tokens than any model writes: a typing mistake that could reserve a whole budget.
_MAX_TOKENS = 10_000_000

FORBIDDEN = frozenset(
    {"url", "base_url", "api_base", "api_key", "apikey", "x_api_key", "headers", "extra_headers", "default_headers"}
    | {"authorization", "proxy"}
)
# The other name of the same parameter: a row that sets one overrides both of the command line.
_TWINS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


def _number(low: float, high: float) -> Check:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _integer(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _one_of(*types: type) -> Check:
    return lambda value: type(value) in types


def _text(value: Any) -> bool:
    return type(value) is str and value.strip() != ""


def _name(value: Any) -> bool:
    return _text(value) and value.isprintable()


def _texts(value: Any) -> bool:
    return _text(value) or (type(value) is list and bool(value) and all(type(text) is str for text in value))


def _objects(value: Any) -> bool:
    return type(value) is list and all(type(item) is dict for item in value)


_TOKENS: tuple[Check, str] = (_integer(1, _MAX_TOKENS), f"an integer from 1 to {_MAX_TOKENS}")
_PENALTY: tuple[Check, str] = (_number(-2, 2), "a number from -2 to 2")
_TEXT: tuple[Check, str] = (_text, "a string that is not empty")
_BOOLEAN: tuple[Check, str] = (_one_of(bool), "true or false")
_OBJECT: tuple[Check, str] = (_one_of(dict), "an object")

_KNOWN: dict[str, tuple[Check, str]] = {
    "model": (_name, "a name of printable characters"),
    "temperature": (_number(0, 100), "a number of 0 or more"),
    "top_p": (_number(0, 1), "a number from 0 to 1"),
    "top_k": (_integer(-1, 10**6), "an integer"),
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    "stop": (_texts, "a string or a list of strings"),
    "seed": (_integer(-(2**63), 2**63 - 1), "an integer"),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "logit_bias": _OBJECT,
    "logprobs": _BOOLEAN,
    "top_logprobs": (_integer(0, 20), "an integer from 0 to 20"),
    "reasoning_effort": _TEXT,
    "verbosity": _TEXT,
    "response_format": _OBJECT,
    "tools": (_objects, "a list of objects"),
    "tool_choice": (_one_of(str, dict), "a string or an object"),
    "parallel_tool_calls": _BOOLEAN,
    "service_tier": _TEXT,
    "store": _BOOLEAN,
    "user": (_one_of(str), "a string"),
    "metadata": _OBJECT,
    "n": (_integer(1, 1), "1: several answers to one row are not supported yet"),
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
}
KNOWN = frozenset(_KNOWN)
# How the answer travels is the run's business; the answer is the same.
_OURS = ("stream", "stream_options")


def checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` without nulls (not given) and without what the run decides. Raises RowError for a bad value."""
    kept = {}
    for name, value in params.items():
        if value is None:
            continue
        known = _KNOWN.get(name)
        if known is not None and not known[0](value):
            raise RowError(f"'{name}' must be {known[1]}, not {_given(value)}")
        if known is None and type(name) is not str:
            raise RowError(f"the name {excerpt(repr(name), 40)} is no string")
        if known is None and is_forbidden(name):
            raise forbidden(name)
        if name not in _OURS:
            kept[name] = value
    return kept


def not_json(value: Any) -> str | None:
    """Why ``value`` can not be sent; None if it can. Numbers that JSON does not have would go out as null."""
    try:
        orjson.dumps(value)
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def is_forbidden(name: str) -> bool:
    """Whether a row with this name would say where requests go, or with which key."""
    return isinstance(name, str) and name.lower().replace("-", "_") in FORBIDDEN


def forbidden(name: str) -> RowError:
    return RowError(
        f"a row may not set '{excerpt(name, 40)}': where requests go and with which key is said on the command line"
    )


def meant(name: str) -> str | None:
    """The known parameter that ``name`` nearly is."""
    close = difflib.get_close_matches(name.lower(), KNOWN, n=1, cutoff=0.85)
    return close[0] if close else None


def without_overridden(run_params: Mapping[str, Any], row_params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The command line's parameters that the row leaves alone: the row wins, under either name."""
    if not run_params or not row_params:
        return run_params
    taken = row_params.keys() | {_TWINS[name] for name in row_params.keys() & _TWINS.keys()}
    return {name: value for name, value in run_params.items() if name not in taken}


def _given(value: Any) -> str:
    if type(value) in (str, int, float):
        return excerpt(repr(value), 40)
    return kind_of(value)
