"""JSON as servers send it: parsed strictly, and such that every string in it can be written again."""

from __future__ import annotations

import json
from typing import Any

import orjson


def loads(text: bytes) -> Any:
    """Strict JSON. Raises ValueError or RecursionError. A lone surrogate, which orjson refuses, becomes its escape."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return writable(_with_surrogates(text.decode()))


def loads_chunk(text: str) -> Any:
    """The same for a part of a text; a surrogate stays, for its other half may come: see ``writable``."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _with_surrogates(text)


def writable(value: Any) -> Any:
    """``value`` with surrogate pairs made one character, and lone surrogates replaced by their escape as text.

    Servers that cut text by UTF-16 units send the halves of an emoji in two chunks.
    """
    if isinstance(value, str):
        return _writable_text(value)
    if isinstance(value, dict):
        return {writable(name): writable(member) for name, member in value.items()}
    if isinstance(value, list):
        return [writable(member) for member in value]
    return value


def _writable_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        return paired.encode("utf-8", "backslashreplace").decode()
    return text


def _with_surrogates(text: str) -> Any:
    """The standard parser takes the escapes of lone surrogates, which are legal JSON (RFC 8259, section 8.2)."""
    if "\\ud" not in text.lower():
        raise ValueError("not JSON")
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")
